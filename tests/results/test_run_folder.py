"""A run on disk: resumed with the same bytes, finished only when whole."""

# pyarrow and pandas have no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import os
from pathlib import Path

import pytest
import torch

from stagetrace.errors import DataError, DescriptionError, ResultsError
from stagetrace.results import Part, RunFolder, Trace
from stagetrace.results.parts import split
from tests.results.folders import MakeScores, MakeTrace, begun, contents, finished, keep, kept
from tests.sealed import rewrite

pytestmark = pytest.mark.usefixtures("three_a_part")


@pytest.mark.parametrize("n_queries", [None, 2])
def test_a_killed_and_resumed_run_ends_with_the_files_of_save(
    trace: MakeTrace, tmp_path: Path, n_queries: int | None
) -> None:
    made = trace(n=8, n_queries=n_queries)
    made.save(tmp_path / "saved")
    with RunFolder.open(tmp_path / "run", made.description) as first:
        keep(first, made, "finetune")
        keep(first, made, "pretrain", range(1, 2))
    (tmp_path / "run" / "scores" / "pretrain" / ".part-00002.parquet.77.tmp").write_bytes(b"half")
    (tmp_path / "run" / ".saving" / "scores").mkdir(parents=True)
    (tmp_path / "run" / ".saving" / "scores" / "part-00000.parquet").write_bytes(b"half")
    again = finished(tmp_path / "run", made)
    assert again.complete
    assert contents(tmp_path / "run") == contents(tmp_path / "saved")
    assert RunFolder.open(tmp_path / "run", made.description).complete
    assert list(Trace.load(tmp_path / "run")) == ["pretrain", "finetune"]


def test_what_was_kept_is_given_back(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace(n=8)
    with RunFolder.open(tmp_path / "run", made.description) as run:
        assert run.solution("pretrain") is None
        assert kept(run, "pretrain") == []
        assert not run.complete
        keep(run, made, "pretrain", range(1, 3))
    again = RunFolder.open(tmp_path / "run", made.description)
    assert kept(again, "pretrain") == [1, 2]
    part = again.part("pretrain", 2)
    assert part is not None
    assert (part.start, part.stop, part.n_examples, part.n_queries) == (6, 8, 8, None)
    assert part.via_shared is not None
    assert torch.equal(part.values, made["pretrain"].values[6:])
    solution = again.solution("pretrain")
    assert solution is not None
    assert torch.equal(solution.value, made.solutions["pretrain"].value)


def test_an_empty_folder_or_one_with_litter_only_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".run.json.77.tmp").write_text("half")
    begun(tmp_path, {})
    assert list(contents(tmp_path)) == ["run.json"]


def test_an_unfinished_run_is_not_read(trace: MakeTrace, tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, {})
    keep(run, trace(), "finetune")
    with pytest.raises(ResultsError, match=rf"not finished; process {os.getpid()} on .* is writing to it"):
        Trace.load(tmp_path)
    run.close()
    with pytest.raises(ResultsError, match="not finished; run the same command again"):
        Trace.load(tmp_path)


def test_a_run_with_a_gap_cannot_be_finished(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace(n=8)
    with RunFolder.open(tmp_path, made.description) as run:
        keep(run, made, "pretrain", range(0, 3, 2))
        before = contents(tmp_path)
        with pytest.raises(ResultsError, match=r"part-00001\.parquet is missing"):
            run.finish({})
        assert contents(tmp_path) == before
        assert not run.complete


@pytest.mark.parametrize("name", ["scores/pretrain/part-00001.parquet", "adjoints/finetune.safetensors"])
def test_a_file_lost_from_a_complete_run_is_named_and_computed_anew(
    trace: MakeTrace, tmp_path: Path, name: str
) -> None:
    made = trace(n=8)
    finished(tmp_path, made)
    before = contents(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ResultsError, match=f"{Path(name).name} is missing; run the same command again"):
        Trace.load(tmp_path)
    with RunFolder.open(tmp_path, made.description) as again:
        assert not again.complete
    finished(tmp_path, made)
    assert contents(tmp_path) == before


def test_a_whole_stage_lost_from_a_complete_run_is_noticed(trace: MakeTrace, tmp_path: Path) -> None:
    finished(tmp_path, trace())
    (tmp_path / "scores/finetune/part-00000.parquet").unlink()
    (tmp_path / "scores/finetune").rmdir()
    with pytest.raises(ResultsError, match=r"finetune/part-00000\.parquet is missing"):
        Trace.load(tmp_path)


def test_a_part_too_many_is_named(trace: MakeTrace, tmp_path: Path) -> None:
    finished(tmp_path, trace(n=3))
    part = tmp_path / "scores/pretrain/part-00000.parquet"
    part.with_name("part-00001.parquet").write_bytes(part.read_bytes())
    with pytest.raises(ResultsError, match=r"part-00001\.parquet is no part of this run; delete this file"):
        Trace.load(tmp_path)


def test_a_part_that_holds_other_examples_is_not_kept(tmp_path: Path, scores: MakeScores) -> None:
    run = RunFolder.open(tmp_path, {})
    values = torch.zeros(2, dtype=torch.float64)
    for start, message in ((0, "must hold the examples 0 to 2, got 0 to 1"), (3, "got 3 to 4")):
        with pytest.raises(ResultsError, match=message):
            run.write_part("s", 0, Part(start, values, n_examples=5))
    with pytest.raises(DataError, match="example 4 has the score nan"):
        run.write_part("s", 1, Part(3, torch.tensor([0.0, float("nan")]).double(), n_examples=5))
    with pytest.raises(DescriptionError, match="examples 4 to 5 do not exist in a stage of 5"):
        Part(4, values, n_examples=5)
    run.close()
    assert list(contents(tmp_path)) == ["run.json"]


def test_a_complete_run_stays_as_it_is(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace(n=3)
    run = finished(tmp_path, made)
    before = contents(tmp_path)
    for act in (
        lambda: run.finish({}),
        lambda: run.write_solution("pretrain", made.solutions["pretrain"]),
        lambda: run.write_part("pretrain", 0, next(split(made["pretrain"]))),
    ):
        with pytest.raises(ResultsError, match="complete and stays as it is"):
            act()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["../../evil", "..", ".", ".hidden", "a/b", "naïve: 1"])
def test_a_stage_name_cannot_leave_the_folder(tmp_path: Path, scores: MakeScores, name: str) -> None:
    hostile = Trace({name: scores(name)}, description={"a": 1})
    hostile.save(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["run.json", "scores"]
    (inside,) = (tmp_path / "run" / "scores").iterdir()
    assert inside.is_dir()
    assert not inside.name.startswith(".")
    assert list(Trace.load(tmp_path / "run")) == [name]
    with pytest.raises(DescriptionError, match="needs a name"):
        RunFolder.open(tmp_path / "other", {"a": 1}).part("", 0)


def test_a_run_continued_by_other_versions_names_both(trace: MakeTrace, tmp_path: Path) -> None:
    begun(tmp_path, trace().description)
    rewrite(tmp_path, lambda record: record["versions"].update(torch="0.1"))
    finished(tmp_path, trace())
    assert Trace.load(tmp_path).versions["torch"] == f"0.1, {torch.__version__}"
