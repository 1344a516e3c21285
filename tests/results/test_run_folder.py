"""A run on disk: resumed with the same bytes, refused when it is another, finished only when whole."""

# pyarrow and pandas have no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stagetrace.errors import DataError, DescriptionError, ResultsError
from stagetrace.results import Part, RunFolder, Scores, Trace
from stagetrace.results.part import split
from stagetrace.solvers.base import Solution

MakeTrace = Callable[..., Trace]
MakeScores = Callable[..., Scores]

pytestmark = pytest.mark.usefixtures("three_a_part")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def keep(run: RunFolder, trace: Trace, stage: str, parts: range = range(9)) -> None:
    """What a trace does for one stage."""
    if run.solution(stage) is None:
        run.keep_solution(stage, trace.solutions[stage])
    done = run.parts(stage)
    for number, part in enumerate(split(trace[stage])):
        if number in parts and number not in done:
            run.keep_part(stage, number, part)


def finished(path: Path, trace: Trace) -> RunFolder:
    run = RunFolder.open(path, trace.description)
    for stage in reversed(list(trace)):
        keep(run, trace, stage)
    run.finish(trace.statistics)
    return run


@pytest.mark.parametrize("n_queries", [None, 2])
def test_a_killed_and_resumed_run_ends_with_the_files_of_save(
    trace: MakeTrace, tmp_path: Path, n_queries: int | None
) -> None:
    made = trace(n=8, n_queries=n_queries)
    made.save(tmp_path / "saved")
    first = RunFolder.open(tmp_path / "run", made.description)
    keep(first, made, "finetune")
    keep(first, made, "pretrain", range(1, 2))
    (tmp_path / "run" / "scores" / "pretrain" / ".part-00002.parquet.77.tmp").write_bytes(b"half")
    (tmp_path / "run" / ".saving").mkdir()
    (tmp_path / "run" / ".saving" / "run.json").write_bytes(b"half")
    again = finished(tmp_path / "run", made)
    assert again.complete
    assert contents(tmp_path / "run") == contents(tmp_path / "saved")
    assert RunFolder.open(tmp_path / "run", made.description).complete
    assert list(RunFolder.read(tmp_path / "run")) == ["pretrain", "finetune"]


def test_what_was_kept_is_given_back(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace(n=8)
    run = RunFolder.open(tmp_path / "run", made.description)
    assert run.solution("pretrain") is None
    assert run.part("pretrain", 0) is None
    assert run.parts("pretrain") == {}
    assert not run.complete
    keep(run, made, "pretrain", range(1, 3))
    again = RunFolder.open(tmp_path / "run", made.description)
    assert list(again.parts("pretrain")) == [1, 2]
    part = again.part("pretrain", 2)
    assert part is not None
    assert (part.start, part.stop, part.n_examples, part.n_queries) == (6, 8, 8, None)
    assert part.via_shared is not None
    assert torch.equal(part.values, made["pretrain"].values[6:])
    solution = again.solution("pretrain")
    assert solution is not None
    assert torch.equal(solution.value, made.solutions["pretrain"].value)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ResultsError, match=r"not a stagetrace run folder.*choose an empty or new folder"):
        RunFolder.open(tmp_path, {})
    assert list(contents(tmp_path)) == ["thesis.tex"]
    with pytest.raises(ResultsError, match="is a file"):
        RunFolder.open(tmp_path / "thesis.tex", {})
    with pytest.raises(ResultsError, match="not a stagetrace run folder"):
        RunFolder.read(tmp_path)
    with pytest.raises(ResultsError, match="not a stagetrace run folder"):
        RunFolder.read(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_an_empty_folder_or_one_with_litter_only_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".run.json.77.tmp").write_text("half")
    assert not RunFolder.open(tmp_path, {}).complete
    assert list(contents(tmp_path)) == ["run.json"]


def test_another_description_is_refused_by_the_leaves_that_differ(tmp_path: Path) -> None:
    old = {"chain": {"pretrain": {"model": "a", "rows": [1, 2]}}, "same": 1, "gone": True}
    new = {"chain": {"pretrain": {"model": "b", "rows": [1, 3, 4]}}, "same": 1}
    RunFolder.open(tmp_path, old)
    before = contents(tmp_path)
    with pytest.raises(ResultsError) as caught:
        RunFolder.open(tmp_path, new)
    assert str(caught.value).splitlines()[1:] == [
        '  chain.pretrain.model: "a" -> "b"',
        "  chain.pretrain.rows.1: 2 -> 3",
        "  gone: true -> (absent)",
        "  chain.pretrain.rows.2: (absent) -> 4",
        "choose another folder (--out), or delete this one",
    ]
    assert contents(tmp_path) == before


def test_many_differences_are_counted_and_long_ones_cut(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, {f"k{i:02}": "x" * 200 for i in range(20)})
    with pytest.raises(ResultsError) as caught:
        RunFolder.open(tmp_path, {f"k{i:02}": "y" for i in range(20)})
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[9] == "  ... and 12 more"
    assert max(map(len, lines[1:])) < 100


def test_equal_descriptions_resume_whatever_their_python_types(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, {"a": (1, 2), "b": {"x": float("inf"), "y": 1}})
    RunFolder.open(tmp_path, {"b": {"y": 1, "x": "inf"}, "a": [1, 2]})
    with pytest.raises(ResultsError, match=r"a.0: 1 -> true"):
        RunFolder.open(tmp_path, {"a": (True, 2), "b": {"x": float("inf"), "y": 1}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no format number"),
        ('{"format": 2}', "format 2, this stagetrace reads format 1"),
        ('{"format": 1, "status": "done"}', "status is 'done'"),
        ('{"format": 1, "status": "complete", "sign": "positive helps"}', "sign is 'positive helps'"),
    ],
)
def test_a_run_json_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    for act in (lambda: RunFolder.open(tmp_path, {}), lambda: RunFolder.read(tmp_path)):
        with pytest.raises(ResultsError, match=message) as caught:
            act()
        assert "run.json" in str(caught.value)
    assert contents(tmp_path) == {"run.json": text.encode()}


def test_a_run_json_with_a_hole_is_refused(trace: MakeTrace, tmp_path: Path) -> None:
    trace().save(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    record["scores"]["pretrain"] = {"n_examples": "7"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ResultsError, match="does not say how many scores"):
        RunFolder.read(tmp_path)


def test_an_unfinished_run_is_not_read(trace: MakeTrace, tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, {})
    keep(run, trace(), "finetune")
    with pytest.raises(ResultsError, match="not finished; run the same command again"):
        Trace.load(tmp_path)


def test_a_run_with_a_gap_cannot_be_finished(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace(n=8)
    run = RunFolder.open(tmp_path, made.description)
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
        RunFolder.read(tmp_path)
    assert not RunFolder.open(tmp_path, made.description).complete
    finished(tmp_path, made)
    assert contents(tmp_path) == before


def test_a_whole_stage_lost_from_a_complete_run_is_noticed(trace: MakeTrace, tmp_path: Path) -> None:
    finished(tmp_path, trace())
    (tmp_path / "scores/finetune/part-00000.parquet").unlink()
    (tmp_path / "scores/finetune").rmdir()
    with pytest.raises(ResultsError, match=r"finetune/part-00000\.parquet is missing"):
        RunFolder.read(tmp_path)


def test_a_part_too_many_is_named(trace: MakeTrace, tmp_path: Path) -> None:
    finished(tmp_path, trace(n=3))
    part = tmp_path / "scores/pretrain/part-00000.parquet"
    part.with_name("part-00001.parquet").write_bytes(part.read_bytes())
    with pytest.raises(ResultsError, match=r"part-00001\.parquet .*must hold the examples 3 to 2, got 0 to 2"):
        RunFolder.read(tmp_path)


def test_a_part_in_the_place_of_another_is_named(trace: MakeTrace, tmp_path: Path) -> None:
    finished(tmp_path, trace(n=8))
    part = tmp_path / "scores/pretrain/part-00000.parquet"
    part.with_name("part-00001.parquet").write_bytes(part.read_bytes())
    with pytest.raises(ResultsError, match=r"part-00001\.parquet .*must hold the examples 3 to 5, got 0 to 2"):
        RunFolder.read(tmp_path)


def test_a_part_of_another_stage_is_refused(trace: MakeTrace, tmp_path: Path) -> None:
    finished(tmp_path, trace(n=3))
    part = tmp_path / "scores/pretrain/part-00000.parquet"
    part.write_bytes((tmp_path / "scores/finetune/part-00000.parquet").read_bytes())
    with pytest.raises(ResultsError, match="its stage is 'finetune', not 'pretrain'"):
        RunFolder.read(tmp_path)


def test_parts_that_are_unlike_are_refused(trace: MakeTrace, tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, {})
    keep(run, trace(n=6), "pretrain", range(1))
    keep(run, trace(n=6, parts=False), "pretrain", range(1, 2))
    with pytest.raises(ResultsError, match=r"part-00001\.parquet holds scores of 6 examples without parts"):
        run.finish({})


def test_a_solution_swapped_after_the_run_is_noticed(
    trace: MakeTrace, tmp_path: Path, solution: Callable[..., Solution]
) -> None:
    finished(tmp_path, trace())
    adjoint = tmp_path / "adjoints/pretrain.safetensors"
    adjoint.write_bytes((tmp_path / "adjoints/finetune.safetensors").read_bytes())
    with pytest.raises(ResultsError, match=r'solutions\.pretrain\.statuses\.1: "CONVERGED" -> "MAX_STEPS"'):
        RunFolder.read(tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "empty", "foreign", "flip"])
@pytest.mark.parametrize("name", ["scores/pretrain/part-00000.parquet", "adjoints/pretrain.safetensors"])
def test_a_damaged_file_is_named_and_neither_used_nor_recomputed(
    trace: MakeTrace, tmp_path: Path, name: str, damage: str
) -> None:
    made = trace(n=8)
    run = RunFolder.open(tmp_path, made.description)
    keep(run, made, "pretrain")
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == "flip" and path.suffix == ".parquet":
        column = pq.ParquetFile(path).metadata.row_group(0).column(1)
        content[column.data_page_offset + column.total_compressed_size - 3] ^= 0xFF
    elif damage == "flip":
        content[2] ^= 0xFF
    else:
        content = {"truncate": content[: len(content) // 2], "empty": bytearray(), "foreign": bytearray(b"hello")}[
            damage
        ]
    path.write_bytes(content)
    again = RunFolder.open(tmp_path, made.description)
    with pytest.raises(ResultsError, match=f"{path.name} is not a .*; delete this file") as caught:
        keep(again, made, "pretrain")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == bytes(content)


def test_a_rewritten_part_with_a_hole_in_its_index_is_refused(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace(n=3)
    finished(tmp_path, made)
    path = tmp_path / "scores/pretrain/part-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "index", pa.array([0, 2, 1])), path)
    with pytest.raises(ResultsError, match="column index has gaps"):
        RunFolder.read(tmp_path)


def test_a_part_that_holds_other_examples_is_not_kept(tmp_path: Path, scores: MakeScores) -> None:
    run = RunFolder.open(tmp_path, {})
    values = torch.zeros(2, dtype=torch.float64)
    for start, message in ((0, "must hold the examples 0 to 2, got 0 to 1"), (3, "got 3 to 4")):
        with pytest.raises(ResultsError, match=message):
            run.keep_part("s", 0, Part(start, values, n_examples=5))
    with pytest.raises(DataError, match="example 4 has the score nan"):
        run.keep_part("s", 1, Part(3, torch.tensor([0.0, float("nan")]).double(), n_examples=5))
    with pytest.raises(DescriptionError, match="examples 4 to 5 do not exist in a stage of 5"):
        Part(4, values, n_examples=5)
    assert list(contents(tmp_path)) == ["run.json"]


def test_a_complete_run_stays_as_it_is(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace(n=3)
    run = finished(tmp_path, made)
    before = contents(tmp_path)
    for act in (
        lambda: run.finish({}),
        lambda: run.keep_solution("pretrain", made.solutions["pretrain"]),
        lambda: run.keep_part("pretrain", 0, next(split(made["pretrain"]))),
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
        RunFolder.open(tmp_path / "run", {"a": 1}).part("", 0)


def test_a_run_continued_by_other_versions_names_both(trace: MakeTrace, tmp_path: Path) -> None:
    RunFolder.open(tmp_path, trace().description)
    record = json.loads((tmp_path / "run.json").read_text())
    record["versions"]["torch"] = "0.1"
    (tmp_path / "run.json").write_text(json.dumps(record))
    finished(tmp_path, trace())
    assert RunFolder.read(tmp_path).versions["torch"] == f"0.1, {torch.__version__}"
