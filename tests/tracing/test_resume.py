"""A run killed at any place and started again ends as if it had never been killed, without doing again what was kept.

`stagetrace score` runs in this process and is killed by an exception, and once in a process of its own that kills
itself with SIGKILL; see `tests/jobs.py` for how, without any waiting.
"""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import Direct, Query, Stage, Trace, trace
from stagetrace.curvature import Auto
from stagetrace.errors import ResultsError
from tests import commands, jobs

PART = 7
"""Examples in a part: "pretrain" (37 examples) has 6, "finetune" (23) has 4."""

SHOWN = "report.html", "previews.parquet"
"""What `score` writes for people once the run is complete; the report says seconds."""

WHOLE = {"pretrain": 6, "finetune": 4}


@dataclass(frozen=True)
class Done:
    """A command that has ended: where it wrote, what it printed, and what it did (the lines of its log)."""

    folder: Path
    printed: str
    said: str
    did: tuple[str, ...]

    def count(self, event: str) -> int:
        """How many lines are of that event, e.g. "product of pretrain"."""
        what, stage = event.split(" of ")
        return sum(line.startswith(what) and line.endswith(stage) for line in self.did)

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("warning: ")]


def scored(job: str, folder: Path, kill: str | None = None, code: int = 0) -> Done:
    """`stagetrace score JOB --out FOLDER`, killed after the line `kill` of its log, if one is given."""
    did: list[str] = []

    def log(line: str) -> None:
        did.append(line)
        if line == kill:
            raise jobs.Killed

    ended, printed, said = code, "", ""
    with pytest.MonkeyPatch.context() as patch:
        jobs.watch(log, PART, patch.setattr)
        try:
            ended, printed, said = commands.stagetrace("score", f"{jobs.FILE}:{job}", "--out", folder)
        except jobs.Killed:
            assert did[-1] == kill
    assert ended == code, said
    return Done(folder, printed, said, tuple(did))


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its record, the lock of one that was killed, and what shows the record."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name not in ("run.json", ".lock", *SHOWN)}


def record(folder: Path) -> dict[str, Any]:
    """The run's record, without what a clock says."""
    content = without_seconds(json.loads((folder / "run.json").read_text()))
    del content["sha256"]
    return content


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(entry) for key, entry in value.items() if key != "seconds"}
    if isinstance(value, list):
        return [without_seconds(entry) for entry in value]
    return value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(place: Path) -> Done:
    """The run that nothing interrupted."""
    return scored("unconverged", place / "whole")


@pytest.fixture(scope="module")
def half_solved(place: Path) -> Path:
    """A process killed in the first stage's solve; the last stage is kept, solution and scores."""
    folder, log, last = place / "solve", place / "solve.log", "product 2 of pretrain"
    watched = {"STAGETRACE_TEST_LOG": str(log), "STAGETRACE_TEST_PART": str(PART), "STAGETRACE_TEST_KILL": last}
    ended = jobs.score("unconverged", folder, **watched)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert log.read_text().splitlines()[-1] == last
    return folder


def test_a_run_that_nothing_interrupted_solves_and_scores_every_stage_once(whole: Done):
    assert {stage: whole.count(f"part of {stage}") for stage in WHOLE} == WHOLE
    assert whole.count("product of finetune") > 0
    assert whole.count("product of pretrain") > 0
    assert len(files(whole.folder)) == 6 + 4 + 2


def test_a_run_killed_in_a_solve_keeps_the_later_stage_and_solves_only_the_earlier(
    whole: Done, half_solved: Path, place: Path
):
    """The stage that was being solved starts anew; there is no half of a solution."""
    left = files(half_solved)
    assert set(left) == {name for name in files(whole.folder) if "finetune" in name}
    again = scored("unconverged", shutil.copytree(half_solved, place / "solve again"))
    assert again.count("product of finetune") == 0
    assert again.count("part of finetune") == 0
    assert again.count("product of pretrain") == whole.count("product of pretrain")
    assert files(again.folder) == files(whole.folder)
    assert record(again.folder) == record(whole.folder)
    assert again.warnings == whole.warnings


def test_a_run_killed_between_two_parts_goes_on_with_the_next(whole: Done, place: Path):
    folder = place / "score"
    scored("unconverged", folder, "part 3 of pretrain")
    left = files(folder)
    assert sum("scores/pretrain" in name for name in left) == 3
    written = {name: (folder / name).stat().st_mtime_ns for name in left if name.startswith("scores")}
    again = scored("unconverged", folder)
    assert again.count("product of pretrain") == again.count("product of finetune") == 0
    assert again.did == tuple(f"part {number} of pretrain" for number in (1, 2, 3))  # of its own: 4, 5, 6
    assert files(folder) == files(whole.folder)
    assert record(folder) == record(whole.folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in written} == written


def test_the_same_command_once_more_reads_the_result_and_warns_again(whole: Done):
    before = files(whole.folder), (whole.folder / "run.json").read_bytes()
    again = scored("unconverged", whole.folder)
    assert again.did == ()
    assert again.printed == whole.printed
    assert len(again.warnings) == 3  # two solves stopped early, one curvature is indefinite
    assert again.warnings == whole.warnings
    assert (files(whole.folder), (whole.folder / "run.json").read_bytes()) == before


def test_the_same_command_refuses_a_run_that_has_been_damaged_since(whole: Done, place: Path):
    folder = shutil.copytree(whole.folder, place / "damaged")
    adjoint = folder / "adjoints" / "pretrain.safetensors"
    content = bytearray(adjoint.read_bytes())
    content[-1] ^= 1
    adjoint.write_bytes(content)
    refused = scored("unconverged", folder, code=1)
    assert (refused.printed, refused.did) == ("", ())
    assert "pretrain.safetensors is damaged or of another run" in refused.said
    assert "delete this file and run the same command again" in refused.said
    assert adjoint.read_bytes() == content
    adjoint.unlink()
    again = scored("unconverged", folder)
    assert again.count("product of pretrain") == whole.count("product of pretrain")
    assert again.count("part of pretrain") == again.count("product of finetune") == 0
    assert files(folder) == files(whole.folder)


def test_python_reads_what_the_command_line_kept(whole: Done, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stagetrace.results.parts.PART_EXAMPLES", PART)
    kept = Trace.load(whole.folder)
    chain, query, options = jobs.unconverged()
    with pytest.warns(UserWarning, match="stopped at the step limit|negative eigenvalues"):
        computed = trace(chain, query, **options)
    assert list(kept) == list(computed) == ["pretrain", "finetune"]
    for name in kept:
        torch.testing.assert_close(kept[name].values, computed[name].values, rtol=1e-9, atol=1e-12)


CHANGES = {
    "model": "stages.pretrain.model.sha256",
    "data": "stages.pretrain.data.sha256",
    "query": "query.data.sha256",
    "curvature": "curvature.finetune.examples",
    "solver": "solver.finetune",
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_changed_run_does_not_resume(changed: str, half_solved: Path, monkeypatch: pytest.MonkeyPatch):
    """In another process than the one that was killed."""
    monkeypatch.setattr("stagetrace.results.parts.PART_EXAMPLES", PART)
    chain, query, options = jobs.unconverged()
    first, last = chain.stages
    settings = dict(options)
    if changed == "model":
        with torch.no_grad():
            first.model.get_parameter("head.bias")[0] += 1e-9
    if changed == "data":
        first.data.tensors[1][30] = (first.data.tensors[1][30] + 1) % jobs.CLASSES
    if changed == "query":
        query = Query(jobs.examples(6, 8))
    if changed == "curvature":
        settings["curvature"] = {last.name: Auto(examples=5)}
    if changed == "solver":
        settings["solver"] = {first.name: options["solver"], last.name: Direct()}
    assert isinstance(first, Stage)
    before = files(half_solved), (half_solved / "run.json").read_bytes()
    with pytest.raises(ResultsError, match="holds another run") as caught:
        trace(chain, query, out=half_solved, **settings)
    lines = str(caught.value).splitlines()
    assert sum(CHANGES[changed] in line for line in lines) >= 1, lines
    if changed != "solver":
        assert len(lines) == 3, "one line says what differs"
    assert (files(half_solved), (half_solved / "run.json").read_bytes()) == before
