"""The two binary formats of a run folder, each file sealed: it says whose it is, and the digest of what it holds.

A part of the scores, as Parquet. One number an example: index int64, score, removal_effect [, via_shared, via_head],
all float64. A matrix: `scores`, removal_effect [, via_shared, via_head] are list<float32>, one entry a query.
A solution, as safetensors: the value as a tensor, everything else as JSON in the metadata.

The metadata of both say format, run (the digest of its description), stage and sha256, so that a file cannot be taken
for one of another run, and a damaged one cannot be used. Types and sizes are checked before a value is read.
"""

# pyarrow has no type information, and safetensors leaves out some of its types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stagetrace.errors import ResultsError, StagetraceError
from stagetrace.results.files import atomic
from stagetrace.results.jsonable import JSON, from_json, to_json
from stagetrace.results.part import Part, check_place, place_of
from stagetrace.results.scores import check_finite
from stagetrace.results.sign import SIGN, UNIT
from stagetrace.solvers.base import Solution

FORMAT = "2"

_TENSOR = "adjoint"
_RECORD = "solution"
_SEAL = "sha256"

T = TypeVar("T")


def write_part(path: Path, run: str, stage: str, number: int, part: Part) -> None:
    """Write part `number` of a stage's scores, atomically; the same part gives the same bytes.

    run: the digest of the run's description. A matrix is stored as float32.

    Raises:
        ResultsError: the part holds other examples than part `number` has to, or the file system refused.
        DataError: a score that is not finite, or too large for float32.
    """
    check_place(f"{path}, stage {stage!r}", number, part)
    table = _table(run, stage, part)
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False, write_page_checksum=True)


def read_part(path: Path, run: str, stage: str, number: int) -> Part:
    """Read part `number` of a stage's scores. A matrix comes back as float64 tensors of the float32 stored.

    Raises:
        ResultsError: the file is damaged, of another run, stage, sign or format, or holds other examples.
    """

    def read() -> Part:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = _text(file.schema_arrow.metadata)
            _check_identity(found, run, stage)
            n_examples, n_queries = int(found["n_examples"]), int(found["n_queries"]) or None
            place = place_of(number, n_examples, n_queries)
            _check_layout(file, len(place), n_queries)
            table = file.read()
        _check_seal(found, _table_digest(table, found))
        part = _part(table, n_examples)
        check_place(f"stage {stage!r}", number, part)
        return part

    return _readable(path, f"a part of the scores of stage {stage!r}", read)


def write_solution(path: Path, run: str, stage: str, solution: Solution) -> None:
    """Write a solution, atomically, its value in its own dtype; the same solution gives the same bytes.

    Raises:
        ResultsError: the file system refused.
    """
    value = solution.value.detach().cpu().contiguous()
    said: dict[str, Any] = {"format": FORMAT, "run": run, "stage": stage, "sign": SIGN, "units": UNIT}
    said |= {_RECORD: solution_record(solution)}
    said[_SEAL] = _value_digest(value, said)
    # one entry only: safetensors writes the entries of the metadata in no fixed order
    metadata = {_RECORD: json.dumps(said)}
    with atomic(path) as temporary:
        try:
            save_file({_TENSOR: value}, temporary, metadata)
        except SafetensorError as cause:
            raise OSError(str(cause)) from cause


def read_solution(path: Path, run: str, stage: str) -> Solution:
    """Read a solution back: every field as it was, the value on the CPU.

    Raises:
        ResultsError: the file is damaged, of another run or stage, or something else.
    """

    def read() -> Solution:
        with safe_open(path, framework="pt") as file:
            said = dict(json.loads((file.metadata() or {})[_RECORD]))
            _check_identity(said, run, stage)
            if list(file.keys()) != [_TENSOR]:
                raise ValueError(f"its tensors are {', '.join(file.keys())}, not {_TENSOR}")
            kept = file.get_slice(_TENSOR)
            if len(kept.get_shape()) not in (1, 2) or kept.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                raise ValueError(f"its tensor is {kept.get_dtype()} {kept.get_shape()}, not numbers [dim] or [dim, k]")
            value = cast("Tensor", file.get_tensor(_TENSOR)).clone()
        _check_seal(said, _value_digest(value, said))
        return _solution(value, said[_RECORD])

    return _readable(path, "a solution", read)


def run_of(path: Path) -> str | None:
    """The digest that a file of scores or a solution carries of its run's description; None if it says none."""
    with suppress(pa.ArrowException, SafetensorError, OSError, LookupError, RecursionError, TypeError, ValueError):
        if path.suffix == ".parquet":
            return _text(pq.read_schema(path).metadata).get("run")
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()[_RECORD])["run"]
    return None


def solution_record(solution: Solution) -> Mapping[str, JSON]:
    """Every field of a solution but its value, for run.json."""
    return to_json(solution, "solution", omit={"value"})


def _solution(value: Tensor, record: object) -> Solution:
    return from_json(Solution, record, value=value)


def _readable(path: Path, what: str, read: Callable[[], T]) -> T:
    """What is read from a file.

    Raises:
        ResultsError: it cannot be; the message names the file.
    """
    try:
        return read()
    except (
        *(pa.ArrowException, SafetensorError, StagetraceError),
        *(ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError),
    ) as cause:
        raise ResultsError(
            f"{path} is not {what} that can be read ({' '.join(str(cause).split())}); "
            "delete this file and run the same command again"
        ) from cause


def _check_identity(found: Mapping[str, object], run: str, stage: str) -> None:
    wanted = {"format": FORMAT, "stage": stage, "sign": SIGN, "units": UNIT}
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(f"its {key} is {found.get(key)!r}, not {value!r}")
    if found.get("run") != run:
        raise ValueError(f"it belongs to another run, {str(found.get('run'))[:12]}, and this folder to {run[:12]}")


def _check_seal(found: Mapping[str, object], digest: str) -> None:
    if found.get(_SEAL) != digest:
        raise ValueError("it is damaged: what it holds is not what was written")


def _check_layout(file: Any, rows: int, n_queries: int | None) -> None:
    """Refuse columns of other types or lengths than a part of that shape has, before they are read."""
    schema, each = file.schema_arrow, n_queries or 1
    with_parts = "via_shared" in schema.names
    if not schema.remove_metadata().equals(_schema(matrix=n_queries is not None, with_parts=with_parts)):
        said = ", ".join(f"{name} {kind}" for name, kind in zip(schema.names, schema.types, strict=True))
        raise ValueError(f"its columns are {said[:200]}: not those of scores")
    if file.metadata.num_rows != rows:
        raise ValueError(f"it has {file.metadata.num_rows} rows, not {rows}")
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    for column, name in enumerate(schema.names):
        values = sum(group.column(column).num_values for group in groups)
        if values != (rows if name == "index" else rows * each):
            raise ValueError(f"its column {name} holds {values} values, not {rows * each}")


def _schema(*, matrix: bool, with_parts: bool) -> Any:
    number = pa.list_(pa.float32()) if matrix else pa.float64()
    names = ["scores" if matrix else "score", "removal_effect", *(("via_shared", "via_head") if with_parts else ())]
    return pa.schema([("index", pa.int64()), *((name, number) for name in names)])


def _table(run: str, stage: str, part: Part) -> Any:
    matrix = part.n_queries is not None
    values = part.values.float().double() if matrix else part.values
    arrays = [pa.array(np.arange(part.start, part.stop, dtype=np.int64))]
    schema = _schema(matrix=matrix, with_parts=part.via_shared is not None)
    for name, tensor in zip(
        schema.names[1:], (values, -values / part.n_examples, part.via_shared, part.via_head), strict=False
    ):
        assert tensor is not None
        check_finite(f"stage {stage!r}, {name}", tensor.float() if matrix else tensor, part.start)
        arrays.append(_lists(tensor) if matrix else pa.array(tensor.detach().contiguous().numpy()))
    metadata = {
        "format": FORMAT,
        "run": run,
        "stage": stage,
        "n_examples": str(part.n_examples),
        "n_queries": str(part.n_queries or 0),
        "sign": SIGN,
        "units": UNIT,
    }
    table = pa.Table.from_arrays(arrays, schema=schema)
    return table.replace_schema_metadata({**metadata, _SEAL: _table_digest(table, metadata)})


def _lists(matrix: Tensor) -> Any:
    """`[n_queries, n]` as n lists of n_queries float32."""
    n_queries, n = matrix.shape
    offsets = np.arange(0, (n + 1) * n_queries, n_queries, dtype=np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(matrix.detach().T.float().contiguous().view(-1).numpy())
    )


def _part(table: Any, n_examples: int) -> Part:
    start = table["index"][0].as_py()
    if not np.array_equal(table["index"].to_numpy(), np.arange(start, start + table.num_rows)):
        raise ValueError("its column index has gaps")
    score, _, *parts = table.column_names[1:]
    return Part(start, _tensor(score, table), n_examples, *(_tensor(name, table) for name in parts))


def _tensor(name: str, table: Any) -> Tensor:
    """A column as float64 `[n]`, or `[n_queries, n]` of a column of lists."""
    column = table[name].combine_chunks()
    if column.null_count:
        raise ValueError(f"its column {name} has gaps")
    if not pa.types.is_list(column.type):
        return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64))
    lengths = set(np.diff(column.offsets.to_numpy()).tolist())
    if len(lengths) != 1:
        raise ValueError(f"its column {name} holds lists of different lengths")
    flat = np.array(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float64)
    return torch.from_numpy(flat).view(table.num_rows, lengths.pop()).T.contiguous()


def _table_digest(table: Any, said: Mapping[str, object]) -> str:
    digest = _digest_of(said)
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.combine_chunks()
        if pa.types.is_list(values.type):
            digest.update(np.diff(values.offsets.to_numpy()).tobytes())
            values = values.flatten()
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)))
    return digest.hexdigest()


def _value_digest(value: Tensor, said: Mapping[str, object]) -> str:
    digest = _digest_of({**said, "dtype": str(value.dtype), "shape": list(value.shape)})
    digest.update(value.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest_of(said: Mapping[str, object]) -> Any:
    content = {key: value for key, value in said.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode())


def _text(metadata: Any) -> dict[str, str]:
    """The file's own metadata, but what Arrow adds to them."""
    found = {key.decode(): value.decode(errors="replace") for key, value in (metadata or {}).items()}
    return {key: value for key, value in found.items() if key != "ARROW:schema"}
