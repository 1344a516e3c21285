"""How far scores reach leads the report and the summary of a run whose training was recorded."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stagetrace import Scores, Trace
from stagetrace.checks.finding import Finding, Level
from stagetrace.report import write
from stagetrace.report.attachments import write_findings
from stagetrace.report.reach import NOT_CHECKED, NOT_REPEATED
from stagetrace.solvers.system import RecordedSteps
from tests.commands import Command, in_process
from tests.report import pages
from tests.report.test_report import Read

VERDICT = Finding("pretrain", "smoothness", Level.WARNING, "scores hold for <b>parts</b> of examples")


@pytest.fixture
def stage_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`stagetrace WORDS` in this process: its exit code, standard output and standard error."""
    yield from in_process(monkeypatch, capsys, 120)


def run(folder: Path, *recorded: str) -> Path:
    """A run of two stages, of which some were recorded."""
    made = {name: pages.solution(place) for place, name in enumerate(("pretrain", "finetune"))}
    solved = {name: replace(made[name], system=RecordedSteps(20)) if name in recorded else made[name] for name in made}
    scores = {name: Scores(name, torch.linspace(-1, 2, 9).double()) for name in made}
    Trace(scores, solved, pages.described("mean")).save(folder)
    return folder


def leading(folder: Path) -> str:
    """What the report says before the first stage's scores."""
    text = Read(write(folder).read_text(encoding="utf-8")).text
    return text[text.index(" Summary ") : text.index("Mean score")]


def test_the_verdict_comes_first_and_what_was_not_checked_is_said(tmp_path: Path, stage_trace: Command):
    folder = run(tmp_path / "both", "pretrain", "finetune")
    assert leading(folder).count(NOT_CHECKED) == 2
    write_findings(folder, [Finding("pretrain", "stationarity", Level.OK, "nothing to see"), VERDICT])
    assert f"How far these scores reach pretrain : {VERDICT.text} finetune : {NOT_CHECKED}" in leading(folder)
    assert "nothing to see" not in leading(folder)
    code, out, _ = stage_trace("show", folder)
    assert code == 0
    assert " ".join(out.split()).startswith(f"pretrain: {VERDICT.text} finetune: {NOT_CHECKED} trace")


@pytest.mark.parametrize(("recorded", "said"), [("finetune", NOT_REPEATED), ("pretrain", NOT_REPEATED)])
def test_what_cannot_be_repeated_is_said(recorded: str, said: str, tmp_path: Path):
    """An idealised stage cannot, nor can one that an idealised stage comes after."""
    assert f"pretrain : {said}" in leading(run(tmp_path / "one", recorded))


def test_a_run_of_minima_says_nothing_of_it(tmp_path: Path, stage_trace: Command):
    folder = run(tmp_path / "none")
    assert "reach" not in leading(folder)
    assert "smoothness" not in stage_trace("show", folder)[1]


def test_a_damaged_file_stops_no_summary(tmp_path: Path, stage_trace: Command):
    folder = run(tmp_path / "damaged", "pretrain", "finetune")
    (folder / "check.json").write_text("{")
    code, out, _ = stage_trace("show", folder)
    assert code == 0
    assert "check.json cannot be read" in out
