"""A run folder that somebody else wrote, and names that want to act: shown as they are, or refused in one line."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stagetrace import Scores, Trace
from stagetrace.checks.finding import Finding, Level
from stagetrace.plaintext import printable
from stagetrace.report.attachments import write_findings
from stagetrace.report.preview import Preview
from stagetrace.report.previews import Previews, write_previews
from tests import hostile, jobs, sealed
from tests.cases import slow_but
from tests.commands import Command, in_process
from tests.report.pages import solution

JOINERS = "\u200c\u200d"
"""Kept on the page, where scripts and pictures need them."""


@pytest.fixture
def stage_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`stagetrace WORDS` in this process: its exit code, standard output and standard error."""
    yield from in_process(monkeypatch, capsys, 400)


def numbers(n: int) -> torch.Tensor:
    return torch.linspace(-1, 2, n).double()


def written(folder: Path, text: str) -> None:
    """A run in which every text is `text`; names without halves of characters, which no file can hold."""
    whole = text.encode("utf-8", "ignore").decode()
    texts, text = text, whole
    stages = {text: Scores(text, torch.stack([numbers(4), numbers(4).flip(0)]))}
    how: Any = {
        "query": {"reduction": "none"},
        "solver": {text: {"name": text, "damping": text, text: [text, {text: 1}]}},
    }
    solved = solution(0)
    solved = replace(solved, notes=(text,))
    Trace(stages, {text: solved}, how, {"device": text, "links": {text: {text: text}}}, {text: text}).save(folder)
    kinds: list[dict[str, Any]] = [{"kind": "text", "text": texts}, {"kind": "table", "fields": ((texts, texts),)}]
    items = [
        Preview(stage, index, **kinds[index % 2], label=texts, prediction=texts, loss=0.5)
        for stage, count in ((text, 4), (None, 2))
        for index in range(count)
    ]
    write_previews(folder, Previews(tuple(items), {"query_examples": 2, "query_loss": 0.5, "command": texts}))
    write_findings(folder, [Finding(texts, texts, Level.WARNING, texts)])
    agreement = {text: {"pearson_r": 0.5, "pearson_interval": [0, 1], "spearman_r": 1, "slope": 1}}
    choice = {"choice": text, "n": 3, "runs": 2, "agreement": agreement}
    (folder / "validate.json").write_text(json.dumps({"estimators": {text: {"unit": text}}, "choices": [choice]}))


@pytest.mark.parametrize("text", slow_but(hostile.STRINGS, *hostile.STRINGS[::3]))
def test_a_run_of_hostile_texts_is_shown_exported_and_reported(stage_trace: Command, tmp_path: Path, text: str):
    folder = tmp_path / "run"
    written(folder, text)
    for words in (
        ("show", folder, "--query", 1),
        ("show", folder),
        ("export", folder, "--format", "csv", "--out", tmp_path / "a.csv"),
        ("report", folder),
        ("curate", folder, "--drop", 1, "--out", tmp_path / "kept"),
        ("show", folder, "--stage", f"{text} "),
    ):
        code, out, err = stage_trace(*words)
        assert code == int(words[-1] == f"{text} "), err
        assert hostile.acting(out) | hostile.acting(err) == set()
        if words[0] == "show" and not code:
            assert printable(text)[:40] in out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert hostile.acting(page, "\n" + JOINERS) == set()
    assert hostile.acting((tmp_path / "kept" / "curation.md").read_text(encoding="utf-8")) == set()
    cells = (tmp_path / "a.csv").read_text(encoding="utf-8").replace('"', "").replace("\n", ",").split(",")
    assert all(cell[:1] not in "=@\t" for cell in cells if cell)  # headings of ours, and numbers
    assert {path.name for path in tmp_path.iterdir()} == {"run", "a.csv", "kept"}  # nothing was written elsewhere


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\u202eb", "[red]x[/red] :skull:"])
def test_file_names_are_shown_as_they_are(stage_trace: Command, tmp_path: Path, name: str):
    folder = tmp_path / name
    code, out, err = stage_trace("show", folder)
    assert code == 1
    assert f"{printable(name)} is not a stagetrace run folder" in err
    written(folder, "plain")
    for words in (("report", folder), ("export", folder, "--format", "numpy", "--out", folder / "a.npz")):
        code, out, more = stage_trace(*words)
        assert (code, more) == (0, "")
        assert printable(name) in out
        err += out
    assert hostile.acting(err) == set()


def test_a_file_name_that_is_no_text_is_refused(stage_trace: Command, tmp_path: Path):
    folder = tmp_path / "half\udcff"
    code, _, err = stage_trace("score", f"{jobs.FILE}:frozen", "--out", folder)
    assert code == 1
    assert "half\\udcff" in err
    check_refused((code, "", err.splitlines()[-1]))


@pytest.mark.parametrize("text", hostile.STRINGS[:8])
def test_errors_and_warnings_of_others_do_not_act(stage_trace: Command, tmp_path: Path, text: str):
    file = tmp_path / "its.py"
    file.write_text(
        f"import warnings\ndef fails():\n    warnings.warn({text!a})\n    raise ValueError({'oops ' + text!a})\n"
    )
    code, out, err = stage_trace("check", f"{file}:fails")
    assert code == 1
    assert "error: while running" in err
    assert "UserWarning: " in err
    assert hostile.acting(out + err) == set()


@pytest.mark.slow
def test_a_traceback_does_not_act(tmp_path: Path):
    ended = jobs.run("-m", "stagetrace", "show", str(tmp_path / "\x1b[31mred"), "--debug")
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
    assert "ResultsError: " in ended.stderr
    assert "\\x1b[31mred is not a stagetrace run folder" in ended.stderr
    assert "\x1b" not in ended.stderr


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a stage in another place": lambda run: run["scores"].update(
        {"../../../etc/passwd": {"n_examples": 4, "n_queries": 2}}
    ),
    "a stage without a name": lambda run: run["scores"].update({"": {"n_examples": 4, "n_queries": 2}}),
    "half a character": lambda run: run["scores"].update({"\udcff": {"n_examples": 4, "n_queries": 2}}),
    "a name longer than a file's": lambda run: run["scores"].update({"x" * 9000: {"n_examples": 4, "n_queries": 2}}),
    "more examples than fit anywhere": lambda run: run["scores"]["plain"].update(n_examples=10**30),
    "more queries than fit anywhere": lambda run: run["scores"]["plain"].update(n_queries=10**30),
    "fewer examples than none": lambda run: run["scores"]["plain"].update(n_examples=-4),
    "no queries": lambda run: run["scores"]["plain"].update(n_queries=0),
    "true examples": lambda run: run["scores"]["plain"].update(n_examples=True),
    "scores that are a list": lambda run: run.update(scores=[]),
    "depth": lambda run: run["description"].update(query=deep(200)),
    "more depth": lambda run: run["description"].update(query=deep(900)),
    "versions that are a list": lambda run: run.update(versions=["a"]),
    "a solution of a stage elsewhere": lambda run: run["solutions"].update({"../x": {}}),
    "another format": lambda run: run.update(format="\x1b[31m"),
}


@pytest.mark.parametrize("what", RECORDS)
@pytest.mark.parametrize("command", ["show", "report"])
def test_a_record_that_cannot_be_is_refused_in_a_line(stage_trace: Command, tmp_path: Path, what: str, command: str):
    folder = tmp_path / "run"
    written(folder, "plain")
    sealed.rewrite(folder, RECORDS[what])
    check_refused(stage_trace(command, folder))


@pytest.mark.parametrize("name", ["adjoints/plain.safetensors", "scores/plain/part-00000.parquet", "run.json"])
def test_every_command_refuses_a_damaged_run_by_the_files_name(stage_trace: Command, tmp_path: Path, name: str):
    folder = tmp_path / "run"
    written(folder, "plain")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for words in (
        ("show", folder),
        ("report", folder),
        ("export", folder, "--format", "csv", "--out", tmp_path / "a.csv"),
        ("curate", folder, "--drop", 1, "--out", tmp_path / "kept"),
    ):
        ended = stage_trace(*words)
        check_refused(ended)
        assert name in ended[2]
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize("content", ["", "[" * 100_000, "1" * 5000, '{"format": 1', "\x00", "null", '"format"', "NaN"])
@pytest.mark.parametrize("name", ["run.json", "check.json", "validate.json", "sweep.json"])
def test_a_file_of_something_else_is_refused_in_a_line(stage_trace: Command, tmp_path: Path, name: str, content: str):
    folder = tmp_path / "run"
    written(folder, "plain")
    (folder / name).write_text(content)
    check_refused(stage_trace("report", folder))


OTHERS: dict[str, tuple[str, Any]] = {
    "a finding without a text": ("check.json", [{"where": "a", "what": "b", "level": "OK"}]),
    "a level of its own": ("check.json", [{"where": "a", "what": "b", "level": "\x1b", "text": "c"}]),
    "a sweep in words": ("sweep.json", [{"stage": "a", "factor": "x", "spearman": 1, "kept": 1, "top": 1}]),
    "a sweep with more": ("sweep.json", {"stage": "a"}),
    "an estimator that nobody named": ("validate.json", {"estimators": {}, "choices": [{"agreement": {"a": {}}}]}),
    "figures in words": (
        "validate.json",
        {
            "estimators": {"a": {"unit": 1}},
            "choices": [{"choice": 1, "n": 1, "runs": 1, "agreement": {"a": {"slope": []}}}],
        },
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_lies_beside_a_run_is_refused_in_a_line(stage_trace: Command, tmp_path: Path, what: str):
    folder, (name, content) = tmp_path / "run", OTHERS[what]
    written(folder, "plain")
    (folder / name).write_text(json.dumps(content))
    check_refused(stage_trace("report", folder))


def test_numbers_beyond_all_measure_are_shown(stage_trace: Command, tmp_path: Path):
    folder = tmp_path / "run"
    values = torch.tensor([1.7e308, -1.7e308, 1e-320, 0.0, 5.0], dtype=torch.float64)
    Trace(
        {"plain": Scores("plain", values)},
        {},
        {"query": {"reduction": 10**4000}},
        {
            "seconds": {"in all": 10**400},
            "coverage": {"plain": {"trained": 1e999}},
            "links": {"plain": {"alpha": 10**4000}},
        },
    ).save(folder)
    write_previews(folder, Previews((Preview(None, 0, "text", "a", loss=float("inf")),), {"query_examples": 10**400}))
    for command in ("show", "report"):
        code, _, err = stage_trace(command, folder)
        assert (code, err) == (0, "")


PREVIEWS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no label": lambda table: table.set_column(7, "label", pa.nulls(len(table), pa.string())),
    "labels that are numbers": lambda table: table.set_column(7, "label", pa.array(range(len(table)))),
    "no columns": lambda table: table.select(["stage", "index"]),
    "an index below zero": lambda table: table.set_column(1, "index", pa.array([-1] * len(table))),
    "a kind of its own": lambda table: table.set_column(2, "kind", pa.array(["<b>"] * len(table))),
    "fields of three": lambda table: table.set_column(5, "fields", pa.array([[["a"]]] * len(table))),
    "facts in words": lambda table: facts(table, {"query_examples": "\x1b", "query_loss": 0.5}),
    "a loss in words": lambda table: facts(table, {"query_examples": 2, "query_loss": "\x1b"}),
    "a command that is none": lambda table: facts(table, {"command": ["rm"]}),
    "facts that are a list": lambda table: facts(table, [1]),
}


def facts(table: pa.Table, said: Any) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, b"facts": json.dumps(said)})


@pytest.mark.parametrize("what", PREVIEWS)
@pytest.mark.parametrize("command", ["show", "report"])
def test_previews_that_cannot_be_are_refused_in_a_line(stage_trace: Command, tmp_path: Path, what: str, command: str):
    folder = tmp_path / "run"
    written(folder, "plain")
    table = pq.read_table(folder / "previews.parquet")
    changed = PREVIEWS[what](table)
    pq.write_table(
        changed if changed.schema.metadata else changed.replace_schema_metadata(table.schema.metadata),
        folder / "previews.parquet",
    )
    check_refused(stage_trace(command, folder))


def check_refused(ended: tuple[int, str, str]) -> None:
    """One line on standard error, of ours, in which nothing acts."""
    code, out, err = ended
    assert code == 1
    assert err.startswith("error: ")
    assert "a bug?" not in err
    assert len(err) < 2_000
    assert hostile.acting(out + err) == set()
