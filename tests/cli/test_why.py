"""`stagetrace why`: what it prints, the page it leaves, and what is wrong to type."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Command, in_process

TARGET = """
from stagetrace import Chain, GaussNewton, Lanczos, hf
from tests.hf import tiny

def job():
    tokenizer = tiny.tokenizer(marks=False)
    turns = "{% for m in messages %}the {{ m.content }} {% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}the {% endif %}"
    stage = hf.stage("only", tiny.model("GPT2LMHeadModel"), tiny.rows(), tokenizer=tokenizer)
    options = {"curvature": GaussNewton(), "solver": Lanczos(damping=0.1)}
    return Chain(stage), hf.query("a dog", stage=stage), options
"""


@pytest.fixture
def stage_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    yield from in_process(monkeypatch, capsys, 150)


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "job_of_why.py").write_text(TARGET)
    return f"{tmp_path / 'job_of_why.py'}:job"


def test_an_answer_is_printed_and_drawn(stage_trace: Command, target: str, tmp_path: Path):
    words = (
        "why",
        target,
        "--prompt",
        "the cat",
        "--completion",
        " sat",
        "--contrast",
        " ran",
        "--out",
        tmp_path / "a",
    )
    code, out, err = stage_trace(*words, "--top", 2)
    assert code == 0, err
    said = " ".join(out.split())
    assert "Why the completion ' sat' (given) rather than ' ran'?" in said
    assert "only, 8 examples: spoke for the completion: score below 0" in said
    (folder,) = (tmp_path / "a").iterdir()
    assert f"to look at it, open {folder / 'why.html'}" in out
    assert json.loads((folder / "question.json").read_text())["unit"] == "nats"
    assert json.loads((folder / "run.json").read_text())["status"] == "complete"


def test_a_conversation_is_read_from_a_file(stage_trace: Command, target: str, tmp_path: Path):
    turns = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "sat on"}]
    (tmp_path / "chat.json").write_text(json.dumps(turns))
    code, out, err = stage_trace("why", target, "--messages", tmp_path / "chat.json", "--out", tmp_path / "a")
    assert code == 0, err
    assert "Why the completion ' sat on' (given)?" in out
    assert "prompt: the cat the" in out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "type --prompt TEXT or --messages FILE: one of the two"),
        (("--prompt", "a", "--messages", "chat.json"), 2, "one of the two"),
        (("--messages", "none.json"), 1, "no file of JSON that can be read"),
        (("--messages", "empty.json"), 1, "must hold a list of messages"),
        (("--messages", "chat.json", "--completion", "b"), 1, "leave out --completion"),
        (("--prompt", "a dog", "--label", "good"), 1, "label= asks a classifier"),
        (("--prompt", "a dog", "--index", "nowhere"), 1, "nowhere"),
    ],
)
def test_what_is_wrong_to_type(
    words: tuple[str, ...],
    code: int,
    says: str,
    stage_trace: Command,
    target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    Path("empty.json").write_text("[]")
    Path("chat.json").write_text('[{"role": "user", "content": "cat"}, {"role": "assistant", "content": "sat"}]')
    ended, _, err = stage_trace("why", target, *words, "--out", "a")
    assert (ended, Path("a").exists()) == (code, False)
    assert says in " ".join(err.replace("│", " ").split())
