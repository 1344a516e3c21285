"""A run on disk: resumed with the same bytes, refused when it is another, finished only when whole."""

# pyarrow and pandas have no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stagetrace.errors import DataError, DescriptionError, ResultsError
from stagetrace.results import JSON, SIGN, Part, RunFolder, Scores, Trace
from stagetrace.results.parts import join, split
from stagetrace.results.solutions import solution_record
from tests.sealed import rewrite

MakeTrace = Callable[..., Trace]
MakeScores = Callable[..., Scores]

pytestmark = pytest.mark.usefixtures("three_a_part")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def keep(run: RunFolder, trace: Trace, stage: str, parts: range = range(9)) -> None:
    """What a trace does for one stage."""
    if run.solution(stage) is None:
        run.write_solution(stage, trace.solutions[stage])
    for number, part in enumerate(split(trace[stage])):
        if number in parts and run.part(stage, number) is None:
            run.write_part(stage, number, part)


def kept(run: RunFolder, stage: str) -> list[int]:
    """The numbers of the parts that are there."""
    return [number for number in range(9) if run.part(stage, number) is not None]


def finished(path: Path, trace: Trace) -> RunFolder:
    with RunFolder.open(path, trace.description) as run:
        for stage in reversed(list(trace)):
            keep(run, trace, stage)
        run.finish(trace.statistics)
    return run


def begun(path: Path, description: Mapping[str, JSON]) -> None:
    """A run that has kept nothing yet."""
    RunFolder.open(path, description).close()


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


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ResultsError, match=r"not a stagetrace run folder.*choose an empty or new folder"):
        RunFolder.open(tmp_path, {})
    assert list(contents(tmp_path)) == ["thesis.tex"]
    with pytest.raises(ResultsError, match="is a file"):
        RunFolder.open(tmp_path / "thesis.tex", {})
    with pytest.raises(ResultsError, match="not a stagetrace run folder"):
        Trace.load(tmp_path)
    with pytest.raises(ResultsError, match="not a stagetrace run folder"):
        Trace.load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_an_empty_folder_or_one_with_litter_only_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".run.json.77.tmp").write_text("half")
    begun(tmp_path, {})
    assert list(contents(tmp_path)) == ["run.json"]


def test_another_description_is_refused_by_the_leaves_that_differ(tmp_path: Path) -> None:
    old = {"chain": {"pretrain": {"model": "a", "rows": [1, 2]}}, "same": 1, "gone": True}
    new = {"chain": {"pretrain": {"model": "b", "rows": [1, 3, 4]}}, "same": 1}
    begun(tmp_path, old)
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
    begun(tmp_path, {f"k{i:02}": "x" * 200 for i in range(20)})
    with pytest.raises(ResultsError) as caught:
        RunFolder.open(tmp_path, {f"k{i:02}": "y" for i in range(20)})
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[9] == "  ... and 12 more"
    assert max(map(len, lines[1:])) < 100


def test_equal_descriptions_resume_whatever_their_python_types(tmp_path: Path) -> None:
    begun(tmp_path, {"a": (1, 2), "b": {"x": float("inf"), "y": 1}})
    begun(tmp_path, {"b": {"y": 1, "x": "inf"}, "a": [1, 2]})
    with pytest.raises(ResultsError, match=r"a.0: 1 -> true"):
        RunFolder.open(tmp_path, {"a": (True, 2), "b": {"x": float("inf"), "y": 1}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no format number"),
        (
            '{"format": 1, "status": "complete"}',
            "format 1, this stagetrace reads format 2: .* run the same command again with another --out",
        ),
        ('{"format": 2, "status": "complete", "sign": "positive helps"}', "sign is 'positive helps'"),
        (json.dumps({"format": 2, "sign": SIGN, "sha256": "c0ffee"}), "damaged or was edited"),
    ],
)
def test_a_run_json_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    for act in (lambda: RunFolder.open(tmp_path, {}), lambda: Trace.load(tmp_path)):
        with pytest.raises(ResultsError, match=message) as caught:
            act()
        assert "run.json" in str(caught.value)
    assert contents(tmp_path) == {"run.json": text.encode()}


def test_a_run_json_with_a_hole_is_refused(trace: MakeTrace, tmp_path: Path) -> None:
    trace().save(tmp_path)
    rewrite(tmp_path, lambda record: record["scores"]["pretrain"].update(n_examples="7"))
    with pytest.raises(ResultsError, match=r"run\.json cannot be read .*its 'n_examples' is \"7\""):
        Trace.load(tmp_path)
    rewrite(tmp_path, lambda record: record["scores"].update(pretrain={"n_queries": None}))
    with pytest.raises(ResultsError, match=r"run\.json cannot be read .*it has no 'n_examples'"):
        Trace.load(tmp_path)
    rewrite(tmp_path, lambda record: record["scores"].update(pretrain={"n_queries": None, "n_examples": 8}))
    rewrite(tmp_path, lambda record: record.update(status="done"))
    with pytest.raises(ResultsError, match=r"its 'status' is \"done\""):
        Trace.load(tmp_path)


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


def half_done(folder: Path, trace: Trace) -> None:
    """A killed run that has kept all of "pretrain"."""
    with RunFolder.open(folder, trace.description) as run:
        keep(run, trace, "pretrain")


def test_a_part_in_the_place_of_another_is_named(trace: MakeTrace, tmp_path: Path) -> None:
    half_done(tmp_path, trace(n=8))
    part = tmp_path / "scores/pretrain/part-00000.parquet"
    part.with_name("part-00001.parquet").write_bytes(part.read_bytes())
    with (
        RunFolder.open(tmp_path, trace().description) as run,
        pytest.raises(ResultsError, match=r"part-00001\.parquet .*must hold the examples 3 to 5, got 0 to 2"),
    ):
        run.part("pretrain", 1)


def test_parts_that_are_unlike_are_refused(trace: MakeTrace, tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, {})
    keep(run, trace(n=6), "pretrain", range(1))
    keep(run, trace(n=6, parts=False), "pretrain", range(1, 2))
    with pytest.raises(ResultsError, match=r"part-00001\.parquet holds scores of 6 examples without parts"):
        run.finish({})


@pytest.mark.parametrize("name", ["scores/pretrain/part-00000.parquet", "adjoints/pretrain.safetensors"])
def test_a_file_of_another_stage_is_refused(trace: MakeTrace, tmp_path: Path, name: str) -> None:
    made = trace(n=3)
    with RunFolder.open(tmp_path, made.description) as run:
        keep(run, made, "pretrain")
        keep(run, made, "finetune")
        (tmp_path / name).write_bytes((tmp_path / name.replace("pretrain", "finetune")).read_bytes())
        with pytest.raises(ResultsError, match="its stage is 'finetune', not 'pretrain'"):
            keep(run, made, "pretrain")
        with pytest.raises(ResultsError, match="its stage is 'finetune', not 'pretrain'"):
            run.finish({})


@pytest.mark.parametrize("name", ["scores/pretrain/part-00001.parquet", "adjoints/pretrain.safetensors"])
def test_a_file_of_another_run_is_refused(trace: MakeTrace, tmp_path: Path, name: str) -> None:
    """Of the same stage and the same shape: only the settings of the run were others."""
    made = trace(n=8)
    other = replace(made, description={**made.description, "damping": 0.02})
    for folder in ("half done", "done"):
        half_done(tmp_path / folder, made)
    finished(tmp_path / "done", made)
    half_done(tmp_path / "other", other)
    for folder in ("half done", "done"):
        (tmp_path / folder / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ResultsError, match=f"{Path(name).name} .*belongs to another run, .* delete this file"):
        half_done(tmp_path / "half done", made)
    with pytest.raises(ResultsError, match=f"{Path(name).name} is damaged or of another run"):
        Trace.load(tmp_path / "done")


def same(left: Trace, right: Trace) -> bool:
    return all(
        torch.equal(left[stage].values, right[stage].values)
        and torch.equal(left.solutions[stage].value, right.solutions[stage].value)
        and solution_record(left.solutions[stage]) == solution_record(right.solutions[stage])
        for stage in left
    )


FILES = ("run.json", "scores/pretrain/part-00000.parquet", "adjoints/pretrain.safetensors")


def loaded(folder: Path) -> tuple[Trace | None, str]:
    """The trace, or what is said instead."""
    try:
        return Trace.load(folder), ""
    except ResultsError as error:
        return None, str(error)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_a_complete_run_is_noticed_wherever_it_is(trace: MakeTrace, tmp_path: Path, name: str) -> None:
    finished(tmp_path, trace(n=3))
    whole = Trace.load(tmp_path)
    recorded = whole.description, whole.statistics, whole.versions
    content = (tmp_path / name).read_bytes()
    for place in range(0, len(content), 11):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        (tmp_path / name).write_bytes(changed)
        found, said = loaded(tmp_path)
        assert name in said or name == "run.json", place
        if found is not None:  # an e that became an E in a number
            assert (found.description, found.statistics, found.versions) == recorded, place


@pytest.mark.parametrize("name", FILES[1:])
def test_a_flipped_bit_in_a_run_to_be_resumed_changes_no_number(trace: MakeTrace, tmp_path: Path, name: str) -> None:
    """The file is refused by its name, or holds what it held: not every byte of a format means something."""
    made = trace(n=3)
    half_done(tmp_path, made)
    content = (tmp_path / name).read_bytes()
    refused = 0
    with RunFolder.open(tmp_path, made.description) as run:
        for place in range(0, len(content), 7):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            (tmp_path / name).write_bytes(changed)
            found, said = what_is_kept(run)
            if found is None:
                assert re.search(f"{Path(name).name} cannot be read as a .*; delete this file", said), place
                refused += 1
            else:
                assert same(found, made), place
    assert refused > 0


def what_is_kept(run: RunFolder) -> tuple[Trace | None, str]:
    """The stage that a killed run has kept, or what is said instead."""
    try:
        part, solution = run.part("pretrain", 0), run.solution("pretrain")
    except ResultsError as error:
        return None, str(error)
    assert part is not None
    assert solution is not None
    return Trace({"pretrain": join("pretrain", [part])}, {"pretrain": solution}), ""


@pytest.mark.parametrize("damage", ["truncate", "empty", "foreign", "flip"])
@pytest.mark.parametrize("name", FILES[1:])
def test_a_damaged_file_is_named_and_neither_used_nor_recomputed(
    trace: MakeTrace, tmp_path: Path, name: str, damage: str
) -> None:
    made = trace(n=8)
    half_done(tmp_path, made)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == "flip" and path.suffix == ".parquet":
        column = pq.ParquetFile(path).metadata.row_group(0).column(1)
        content[column.data_page_offset + column.total_compressed_size - 3] ^= 0xFF
    elif damage == "flip":
        content[-1] ^= 1  # the last digit of the last number
    else:
        content = {"truncate": content[: len(content) // 2], "empty": bytearray(), "foreign": bytearray(b"hello")}[
            damage
        ]
    path.write_bytes(content)
    with (
        RunFolder.open(tmp_path, made.description) as again,
        pytest.raises(ResultsError, match=f"{path.name} cannot be read as a .*; delete this file") as caught,
    ):
        keep(again, made, "pretrain")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == bytes(content)


REWRITTEN: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "an index with a hole": (lambda table: table.set_column(0, "index", pa.array([0, 2, 1])), "what was written"),
    "a changed score": (lambda table: table.set_column(1, "score", pa.array([0.0, 1.0, 2.0])), "what was written"),
    "a changed effect": (
        lambda table: table.set_column(2, "removal_effect", pa.array([0.0, 1.0, 2.0])),
        "what was written",
    ),
    "float32": (lambda table: table.set_column(1, "score", table["score"].cast(pa.float32())), "not those of scores"),
    "text": (lambda table: table.set_column(1, "score", pa.array(["a", "b", "c"])), "not those of scores"),
    "lists": (lambda table: table.set_column(1, "score", pa.array([[1.0]] * 3)), "not those of scores"),
    "no column of effects": (lambda table: table.drop_columns(["removal_effect"]), "not those of scores"),
    "too few rows": (lambda table: table.slice(0, 2), "it has 2 rows, not 3"),
    "too many rows": (lambda table: pa.concat_tables([table] * 9), "it has 27 rows, not 3"),
    "gaps": (lambda table: table.set_column(1, "score", pa.array([0.0, None, 2.0])), "gaps|what was written"),
}


@pytest.mark.parametrize("change", REWRITTEN)
def test_a_rewritten_part_is_refused(
    trace: MakeTrace, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types and sizes before anything is read."""
    made, (how, message) = trace(n=3), REWRITTEN[change]
    half_done(tmp_path, made)
    path = tmp_path / "scores/pretrain/part-00000.parquet"
    changed = how(table := pq.read_table(path))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    reads: list[object] = []
    monkeypatch.setattr(pq.ParquetFile, "read", counting(pq.ParquetFile.read, reads))
    with (
        RunFolder.open(tmp_path, made.description) as run,
        pytest.raises(ResultsError, match=rf"part-00000\.parquet cannot be read as a part .*({message})"),
    ):
        run.part("pretrain", 0)
    assert bool(reads) == ("what was written" in message)


def counting(real: Callable[..., Any], calls: list[object]) -> Callable[..., Any]:
    def counted(*args: object, **settings: object) -> Any:
        calls.append(args)
        return real(*args, **settings)

    return counted


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"adjoint": torch.zeros(3, 2, 2)}, r"its tensor is F32 \[3, 2, 2\], not numbers"),
        ({"adjoint": torch.zeros(3, dtype=torch.int64)}, r"its tensor is I64 \[3\], not numbers"),
        ({"adjoint": torch.zeros(3), "more": torch.zeros(10**6)}, "its tensors are .*more.*, not adjoint"),
        ({"adjoint": torch.zeros(7, 2)}, "not what was written"),
    ],
)
def test_a_rewritten_solution_is_refused(
    trace: MakeTrace, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    half_done(tmp_path, trace())
    path = tmp_path / "adjoints/pretrain.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    with (
        RunFolder.open(tmp_path, trace().description) as run,
        pytest.raises(ResultsError, match=rf"pretrain\.safetensors cannot be read as a solution .*{message}"),
    ):
        run.solution("pretrain")


@pytest.mark.parametrize("bigger", [{"n_examples": 10**15}, {"n_queries": 10**15}])
def test_a_record_of_more_than_there_is_is_refused(trace: MakeTrace, tmp_path: Path, bigger: dict[str, int]) -> None:
    finished(tmp_path, trace())
    rewrite(tmp_path, lambda record: record["scores"]["pretrain"].update(bigger))
    with pytest.raises(ResultsError, match=r"run\.json does not list the files of the scores that it records"):
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
