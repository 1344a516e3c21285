"""A part of the scores as a Parquet file.

One number an example: columns index int64, score, removal_effect [, via_shared, via_head], all float64.
A matrix: `scores`, removal_effect [, via_shared, via_head] are list<float32>, one entry a query.
The file's own metadata say stage, n_examples, sign and unit, so that it cannot be misread on its own.
"""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stagetrace.errors import ResultsError, StagetraceError
from stagetrace.results.atomic import atomic
from stagetrace.results.part import Part, check_place
from stagetrace.results.scores import check_finite
from stagetrace.results.sign import SIGN, UNIT

FORMAT = 1
SCORE = "score"
MATRIX_SCORE = "scores"


def write_part(path: Path, stage: str, number: int, part: Part) -> None:
    """Write part `number` of a stage's scores, atomically; the same part gives the same bytes.

    A matrix is stored as float32.

    Raises:
        ResultsError: the part holds other examples than part `number` has to, or the file system refused.
        DataError: a score that is not finite, or too large for float32.
    """
    check_place(f"{path}, stage {stage!r}", number, part)
    table = _table(stage, part)
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=False, write_page_checksum=True)


def read_part(path: Path, stage: str, number: int) -> Part:
    """Read part `number` of a stage's scores. A matrix comes back as float64 tensors of the float32 stored.

    Raises:
        ResultsError: the file is damaged, of another stage, sign or format, or holds other examples.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            part = _part(stage, file.read())
        check_place(f"stage {stage!r}", number, part)
    except (pa.ArrowException, OSError, StagetraceError, LookupError, TypeError, ValueError) as cause:
        raise ResultsError(
            f"{path} is not a part of the scores of stage {stage!r} that can be read ({_one_line(cause)}); "
            f"delete this file and run the same command again"
        ) from cause
    return part


def _table(stage: str, part: Part) -> Any:
    matrix = part.n_queries is not None
    values = part.values.float().double() if matrix else part.values
    columns = {
        MATRIX_SCORE if matrix else SCORE: values,
        "removal_effect": -values / part.n_examples,
        "via_shared": part.via_shared,
        "via_head": part.via_head,
    }
    arrays = {"index": pa.array(np.arange(part.start, part.stop, dtype=np.int64))}
    for name, tensor in columns.items():
        if tensor is not None:
            check_finite(f"stage {stage!r}, {name}", tensor.float() if matrix else tensor, part.start)
            arrays[name] = _lists(tensor) if matrix else pa.array(tensor.detach().contiguous().numpy())
    metadata = {
        "format": str(FORMAT),
        "stage": stage,
        "n_examples": str(part.n_examples),
        "sign": SIGN,
        "units": UNIT,
    }
    return pa.table(arrays).replace_schema_metadata(metadata)


def _lists(matrix: Tensor) -> Any:
    """`[n_queries, n]` as n lists of n_queries float32."""
    n_queries, n = matrix.shape
    offsets = np.arange(0, (n + 1) * n_queries, n_queries, dtype=np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(matrix.detach().T.float().contiguous().view(-1).numpy())
    )


def _part(stage: str, table: Any) -> Part:
    found = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    wanted = {"format": str(FORMAT), "stage": stage, "sign": SIGN, "units": UNIT}
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(f"its {key} is {found.get(key)!r}, not {value!r}")
    start = table["index"][0].as_py()
    if not np.array_equal(table["index"].to_numpy(), np.arange(start, start + table.num_rows)):
        raise ValueError("its column index has gaps")
    score = MATRIX_SCORE if MATRIX_SCORE in table.column_names else SCORE
    values, shared, head = (
        _tensor(name, table) if name in table.column_names else None for name in (score, "via_shared", "via_head")
    )
    if values is None:
        raise ValueError(f"it has no column {score}")
    return Part(start, values, int(found["n_examples"]), shared, head)


def _tensor(name: str, table: Any) -> Tensor:
    """A column as float64 `[n]`, or `[n_queries, n]` of a column of lists."""
    column = table[name].combine_chunks()
    if not pa.types.is_list(column.type):
        return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64))
    lengths = set(np.diff(column.offsets.to_numpy()).tolist())
    if len(lengths) != 1 or column.null_count:
        raise ValueError(f"its column {name} holds lists of different lengths")
    flat = np.array(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float64)
    return torch.from_numpy(flat).view(table.num_rows, lengths.pop()).T.contiguous()


def _one_line(cause: Exception) -> str:
    return " ".join(str(cause).split())
