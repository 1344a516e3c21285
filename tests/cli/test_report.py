"""`stagetrace report` and `show`, and the report that `score` writes: what they print, and what they leave behind."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagetrace import GaussNewton, Lanczos, Trace, trace
from stagetrace.checks.finding import Level
from stagetrace.report.item import Reader
from stagetrace.report.preview import Preview
from stagetrace.report.previews import Previews, read_previews, write_previews
from tests import jobs
from tests.commands import Command, in_process
from tests.report.test_report import Read

TARGET = f"{jobs.FILE}:frozen"
SOLVER = Lanczos(damping=0.01, rtol=1e-9)


@pytest.fixture
def stage_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`stagetrace WORDS` in this process: its exit code, standard output and standard error."""
    yield from in_process(monkeypatch, capsys, 120)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `trace(out=...)` leaves it, with a matrix."""
    folder = tmp_path_factory.mktemp("bare") / "run"
    chain, query, _ = jobs.frozen()
    each = type(query)(query.data, reduction="none")
    trace(chain, each, curvature=GaussNewton(), solver=SOLVER, out=folder)
    return folder


@pytest.fixture
def run(bare: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bare, tmp_path / "run")


def test_score_leaves_a_report_with_its_command_and_its_examples(stage_trace: Command, tmp_path: Path):
    folder = tmp_path / "a run"
    words = "score", TARGET, "--out", folder, "--solve", "curvature=gauss-newton,damping=0.01", "--sweep"
    code, out, err = stage_trace(*words)
    assert code == 0, err
    assert f"to look at it, open {folder / 'report.html'}" in out
    page = Read((folder / "report.html").read_text(encoding="utf-8"))
    assert (
        f"stagetrace score {TARGET} --out '{folder}' --solve curvature=gauss-newton,damping=0.01 --sweep" in page.text
    )
    assert page.embedded["previews"]["0:0"]["fields"][0][0] == "input"
    assert len(page.embedded["queries"]) == 6
    found = json.loads((folder / "sweep.json").read_text())
    assert [(each["stage"], each["factor"]) for each in found] == [
        (stage, factor) for factor in (0.1, 10.0) for stage in ("pretrain", "finetune")
    ]
    assert "Not measured" not in page.text
    kept = (folder / "previews.parquet").read_bytes()
    assert stage_trace("report", folder)[0] == 0
    assert (folder / "previews.parquet").read_bytes() == kept
    again = Read((folder / "report.html").read_text(encoding="utf-8"))
    assert again.text == page.text  # the command, too, was kept


def test_a_sweep_of_nothing_is_refused_before_the_run(stage_trace: Command, tmp_path: Path):
    code, out, err = stage_trace("score", TARGET, "--out", tmp_path / "run", "--solve", "damping=0", "--sweep")
    assert (code, out) == (1, "")
    assert "no stage is damped" in err
    assert not (tmp_path / "run").exists()


def test_a_run_without_previews_gets_them_from_its_target(stage_trace: Command, run: Path, tmp_path: Path):
    file = tmp_path / "page.html"
    assert stage_trace("report", run, "--out", file)[:2] == (0, f"wrote {file}\n")
    assert Read(file.read_text(encoding="utf-8")).embedded["previews"] == {}
    assert stage_trace("report", run, "--target", TARGET, "--out", file)[0] == 0
    assert len(Read(file.read_text(encoding="utf-8")).embedded["previews"]) > 40
    assert not (run / "report.html").exists()


def test_a_run_stands_where_its_report_cannot_be_written(stage_trace: Command, tmp_path: Path):
    assert stage_trace("score", TARGET, "--out", tmp_path / "run")[0] == 0
    (tmp_path / "run" / "check.json").write_text("{")
    code, out, err = stage_trace("score", TARGET, "--out", tmp_path / "run")
    assert code == 0
    assert "the run is complete, but its report was not written" in err
    assert f"saved to {tmp_path / 'run'}" in out
    assert "to look at it" not in out


def test_show_gives_the_ends_of_a_ranking(stage_trace: Command, run: Path):
    code, out, err = stage_trace("show", run, "--stage", "pretrain", "--query", 3, "--top", 4)
    assert (code, err) == (0, "")
    scores = Trace.load(run)["pretrain"]
    shown = [int(index) for index in re.findall(r"^ +(\d+) +[+-]\d\.\d+e", out, flags=re.MULTILINE)]
    wanted = scores.top(4, query=3).indices + scores.top(4, harmful=False, query=3).indices
    assert tuple(shown) == wanted
    assert out.count("(query 3)") == 2
    assert "finetune: " not in out[out.index("removing it helps") :]
    assert stage_trace("show", run)[1].count("10 most harmful") == 2


def test_show_says_what_examples_and_the_query_look_like(stage_trace: Command, run: Path):
    assert stage_trace("report", run, "--target", TARGET)[0] == 0
    out = stage_trace("show", run, "--query", 2, "--top", 2)[1]
    (asked,) = (line for line in out.splitlines() if line.startswith("query 2: "))
    preview = next(item for item in read_previews(run).items if (item.stage, item.index) == (None, 2))
    assert f"predicted {preview.prediction}; loss {preview.loss:.3f}"[:30] in asked
    assert "input: " in out
    assert " class " in out


def test_show_has_a_row_for_all_examples_that_look_the_same(stage_trace: Command, run: Path):
    scores = Trace.load(run)["pretrain"]
    order = scores.top(37, query=3).indices
    same = sorted(order[:9])
    items = [
        Preview("pretrain", index, "text", "a retweet" if index in same else f"tweet {index}") for index in range(37)
    ]
    write_previews(run, Previews(tuple(items)))
    out = stage_trace("show", run, "--stage", "pretrain", "--query", 3, "--top", 4)[1]
    shown = [int(index) for index in re.findall(r"^ +(\d+) +[+-]\d\.\d+e", out, flags=re.MULTILINE)]
    assert shown[:4] == [order[0], *order[9:12]]
    words = " ".join(out.split())
    assert f"#{order[0]} stands for 9 examples that look the same: {', '.join(map(str, order[:9]))}" in words


def test_show_lets_no_text_act_on_the_terminal(stage_trace: Command, run: Path):
    rows = [{"text": "\x1b[31mred\x07 \u202egnp.exe " + "long " * 99, "label": "a\x1bb"}] * 37
    items = [Reader.of(rows).preview("pretrain", index) for index in range(37)]
    write_previews(run, Previews(tuple(items)))
    out = stage_trace("show", run, "--stage", "pretrain", "--top", 2)[1]
    assert "[31mred" in out
    assert not set(out) & {"\x1b", "\x07", "\u202e"}
    assert max(map(len, out.splitlines())) <= 120


def test_check_keeps_its_findings_beside_a_run_only(stage_trace: Command, run: Path, tmp_path: Path):
    code, out, err = stage_trace("check", TARGET, "--out", tmp_path / "none")
    assert (code, out) == (1, "")
    assert "none is not a stagetrace run folder" in err
    code, out, err = stage_trace("check", TARGET, "--out", run)
    assert code == 0, err
    found = json.loads((run / "check.json").read_text())
    assert {each["where"] for each in found} == {"pretrain", "finetune", "query", "run"}
    stage_trace("report", run)
    page = Read((run / "report.html").read_text(encoding="utf-8"))
    for each in found:
        assert " ".join(f"{each['where']} {each['what']} {Level[each['level']]} {each['text']}".split()) in page.text


def test_a_validation_in_the_same_folder_is_shown(stage_trace: Command, run: Path):
    words = "--retrain", "sgd:steps=2", "--processes", "1", "--largest", "3", "--random", "3", "--seeds", "1"
    code, _, err = stage_trace("validate", TARGET, "--out", run, "--solve", "damping=0.01", *words)
    assert code == 0, err
    assert stage_trace("report", run)[0] == 0
    page = Read((run / "report.html").read_text(encoding="utf-8"))
    record = json.loads((run / "validate.json").read_text())
    assert {each["unit"] for each in record["estimators"].values()} > {None}  # random predicts no size
    for choice in record["choices"]:
        assert f"{choice['choice']} (n = 3)" in page.text
        for name, found in choice["agreement"].items():
            has_unit = record["estimators"][name]["unit"] is not None
            slope = f"{found['slope']:.2f}" if has_unit and found["slope"] is not None else "-"
            row = rf"{re.escape(name)} {found['pearson_r']:.4f} \S+(?: to \S+)? {found['spearman_r']:.4f} {slope} "
            assert re.search(row, page.text), row
    assert [attrs["src"][:22] for tag, attrs in page.tags if tag == "img"] == ["data:image/png;base64,"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--stage", "distil"), "no stage of that name has scores; type one of: 'pretrain', 'finetune'"),
        (("--query", "6"), "query 6 does not exist; type 0 to 5"),
    ],
)
def test_show_refuses_what_is_not_there(stage_trace: Command, run: Path, words: tuple[str, ...], message: str):
    code, _, err = stage_trace("show", run, *words)
    assert code == 1
    assert message in err


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_folder_that_is_no_run(stage_trace: Command, tmp_path: Path, command: str):
    code, _, err = stage_trace(command, tmp_path)
    assert code == 1
    assert "is not a stagetrace run folder" in err
    assert list(tmp_path.iterdir()) == []
