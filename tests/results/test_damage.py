"""A damaged or rewritten file is noticed wherever it is, named, and neither used nor computed anew."""

# pyarrow and pandas have no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stagetrace.errors import ResultsError
from stagetrace.results import RunFolder, Trace
from stagetrace.results.parts import join
from stagetrace.results.solutions import solution_record
from tests.results.folders import FILES, MakeTrace, finished, half_done, keep
from tests.sealed import rewrite

pytestmark = pytest.mark.usefixtures("three_a_part")


def same(left: Trace, right: Trace) -> bool:
    return all(
        torch.equal(left[stage].values, right[stage].values)
        and torch.equal(left.solutions[stage].value, right.solutions[stage].value)
        and solution_record(left.solutions[stage]) == solution_record(right.solutions[stage])
        for stage in left
    )


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
