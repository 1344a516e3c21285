"""Scores in pieces, so that a killed run loses little; each is a Parquet file that says whose it is.

One number an example: index int64, score, removal_effect [, via_shared, via_head], all float64. A matrix: `scores`
[, via_shared, via_head] are list<float32>, one entry a query; its removal effects are the scores times a constant,
which older versions stored too (they are read and left out). Where the stage's examples have ids, they are the last
column, `id`, of strings. Types and sizes are checked before a value is read.
"""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stagetrace.errors import ResultsError, refuse
from stagetrace.results.files import REMEDY, atomic, read_as
from stagetrace.results.manifest import check_identity, identity
from stagetrace.results.part_columns import ID, check_layout, schema_of
from stagetrace.results.scores import Scores, check_finite, check_values
from stagetrace.results.seals import SEAL, check_seal, seal_of
from stagetrace.stages.ids import Ids

PART_EXAMPLES = 16384
"""Examples a part. It belongs to the format of the folder: another number needs another format number."""

_PART_BYTES = 64 * 1024**2


def part_size(n_queries: int | None = None) -> int:
    """How many examples a part holds: `PART_EXAMPLES`, or fewer for a matrix, so that a part stays within 64 MiB.

    n_queries: the rows of the matrix; None where the query is reduced to one number.

    Example:
        >>> part_size(), part_size(10), part_size(100_000)
        (16384, 16384, 41)
    """
    if n_queries is None:
        return PART_EXAMPLES
    # up to four lists of float32 a query: it belongs to the format like the number above
    return max(1, min(PART_EXAMPLES, _PART_BYTES // (4 * 4 * n_queries)))


@final
@dataclass(frozen=True, eq=False)
class Part:
    """The scores of the examples `start`, `start + 1`, ... of a stage.

    values, via_shared, via_head: as in `Scores`, `[n]` or `[n_queries, n]`, on the CPU.
        Sign: positive = harmful. Unit: query loss.
    n_examples: how many examples the whole stage has; the removal effect is `-values / n_examples`.
    ids: those of the part's examples, where they have some.

    Raises:
        DescriptionError: a tensor of another dtype, device or shape, or examples beyond the stage's last one.
    """

    start: int
    values: Tensor
    n_examples: int
    via_shared: Tensor | None = None
    via_head: Tensor | None = None
    ids: Ids | None = None

    def __post_init__(self) -> None:
        check_values(f"Part(start={self.start})", self.values, self.via_shared, self.via_head)
        if self.start < 0 or self.stop > self.n_examples:
            refuse(
                f"Part: examples {self.start} to {self.stop - 1} do not exist in a stage of {self.n_examples} examples"
            )

    @property
    def stop(self) -> int:
        """One past the part's last example."""
        return self.start + self.values.shape[-1]

    def plus(self, other: "Part") -> "Part":
        """The sum of two terms of the same examples' scores, each of the paper's parts by itself."""

        def both(name: str) -> Tensor | None:
            mine, theirs = getattr(self, name), getattr(other, name)
            return None if mine is None or theirs is None else mine + theirs

        return Part(self.start, self.values + other.values, self.n_examples, both("via_shared"), both("via_head"))

    def named(self, ids: Ids | None) -> "Part":
        """The part with its examples' ids, out of those of the whole stage."""
        return self if ids is None else replace(self, ids=ids[self.start : self.stop])

    @property
    def n_queries(self) -> int | None:
        """How many queries the matrix has; None where the query was reduced to one number."""
        return self.values.shape[0] if self.values.ndim == 2 else None


def split(scores: Scores) -> Iterator[Part]:
    """The parts of the scores, in order: the same that a run keeps as it goes."""
    size, n = part_size(scores.n_queries), scores.n_examples
    for start in range(0, n, size):
        values, shared, head = (
            None if tensor is None else tensor[..., start : start + size]
            for tensor in (scores.values, scores.via_shared, scores.via_head)
        )
        assert values is not None
        yield Part(start, values, n, shared, head).named(scores.ids)


def join(stage: str, parts: Iterable[Part]) -> Scores:
    """The scores that the parts, complete and in order, make up; each is let go once it is copied."""
    whole, ids = dict[str, Tensor](), list[Ids]()
    for part in parts:
        ids += [] if part.ids is None else [part.ids]
        for name in ("values", "via_shared", "via_head"):
            tensor: Tensor | None = getattr(part, name)
            if tensor is not None:
                if name not in whole:
                    whole[name] = tensor.new_empty((*tensor.shape[:-1], part.n_examples))
                whole[name][..., part.start : part.stop] = tensor
    values, named = whole["values"], sum(map(len, ids))
    joined = Ids.joined(ids) if named == values.shape[-1] else None
    return Scores(stage, values, whole.get("via_shared"), whole.get("via_head"), joined)


def place_of(number: int, n_examples: int, n_queries: int | None) -> range:
    """The examples that part `number` holds; empty beyond the stage's last one.

    Example:
        >>> place_of(1, 20_000, None)
        range(16384, 20000)
    """
    size = part_size(n_queries)
    return range(number * size, min((number + 1) * size, n_examples))


def part_count(n_examples: int, n_queries: int | None) -> int:
    """How many parts that many examples make."""
    return -(-n_examples // part_size(n_queries))


def check_place(where: str, number: int, part: Part) -> None:
    """Refuse a part that does not hold the examples that part `number` has to hold.

    Raises:
        ResultsError: it starts or ends elsewhere.
    """
    place = place_of(number, part.n_examples, part.n_queries)
    if (part.start, part.stop) != (place.start, place.stop):
        raise ResultsError(
            f"{where}: part {number} must hold the examples {place.start} to {place.stop - 1}, "
            f"got {part.start} to {part.stop - 1}; a part is part_size(n_queries) examples"
        )


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
    """Read part `number` of a stage's scores. A matrix comes back as the float32 stored.

    Raises:
        ResultsError: the file is damaged, of another run, stage, sign or format, or holds other examples.
    """
    with read_as(path, f"a part of the scores of stage {stage!r}", REMEDY):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = metadata_of(file.schema_arrow.metadata)
            check_identity(found, run, stage)
            n_examples, n_queries = int(found["n_examples"]), int(found["n_queries"]) or None
            check_layout(file, len(place_of(number, n_examples, n_queries)), n_queries)
            table = file.read()
        check_seal(found, seal_of_table(table, found))
        part = _part(table, n_examples)
        check_place(f"stage {stage!r}", number, part)
        return part


def run_of_part(path: Path) -> str | None:
    """The digest that the file carries of its run's description."""
    return metadata_of(pq.read_schema(path).metadata).get("run")


def _table(run: str, stage: str, part: Part) -> Any:
    matrix = part.n_queries is not None
    effect = () if matrix else (-part.values / part.n_examples,)
    arrays = [pa.array(np.arange(part.start, part.stop, dtype=np.int64))]
    schema = schema_of(matrix=matrix, with_parts=part.via_shared is not None, with_ids=part.ids is not None)
    parts = () if part.via_shared is None else (part.via_shared, part.via_head)
    for name, tensor in zip(schema.names[1:], (part.values, *effect, *parts), strict=False):
        assert tensor is not None
        check_finite(f"stage {stage!r}, {name}", tensor.float() if matrix else tensor, part.start)
        arrays.append(to_lists(tensor) if matrix else pa.array(tensor.detach().contiguous().numpy()))
    if part.ids is not None:
        arrays.append(part.ids.array)
    shape = {"n_examples": str(part.n_examples), "n_queries": str(part.n_queries or 0)}
    metadata = identity(run, stage) | shape
    table = pa.Table.from_arrays(arrays, schema=schema)
    return table.replace_schema_metadata({**metadata, SEAL: seal_of_table(table, metadata).hexdigest()})


def to_lists(matrix: Tensor) -> Any:
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
    score, *others = table.column_names[1:]
    parts = [name for name in others if name not in ("removal_effect", ID)]
    ids = Ids.read(table[ID]) if ID in others else None
    both = {name: _tensor(name, table) for name in parts}
    return Part(start, _tensor(score, table), n_examples, both.get("via_shared"), both.get("via_head"), ids)


def _tensor(name: str, table: Any) -> Tensor:
    """A column as float64 `[n]`, or float32 `[n_queries, n]` of a column of lists."""
    column = table[name].combine_chunks()
    if column.null_count:
        raise ValueError(f"its column {name} has gaps")
    if not pa.types.is_list(column.type):
        return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False), dtype=np.float64))
    return of_lists(name, table, None)


def of_lists(name: str, table: Any, n_queries: int | None) -> Tensor:
    """A column of lists of `n_queries` float32 (None: as the first is long) as `[n_queries, n]`."""
    column = table[name].combine_chunks()
    lengths = set(np.diff(column.offsets.to_numpy()).tolist())
    if len(lengths) > 1 or column.null_count or (n_queries is not None and not lengths <= {n_queries}):
        raise ValueError(f"its column {name} holds lists of different lengths")
    flat = np.array(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    return torch.from_numpy(flat).view(table.num_rows, n_queries or lengths.pop()).T.contiguous()


def seal_of_table(table: Any, metadata: Mapping[str, object]) -> Any:
    """The digest, by `hashlib`, of a table's columns and of what its file says of itself."""
    seal = seal_of(metadata)
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.combine_chunks()
        if name == ID:
            seal.update(name.encode())
            seal.update(Ids.read(values).sha256().encode())
            continue
        if pa.types.is_list(values.type):
            seal.update(np.diff(values.offsets.to_numpy()).tobytes())
            values = values.flatten()
        seal.update(name.encode())
        seal.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)))
    return seal


def metadata_of(metadata: Any) -> dict[str, str]:
    """The file's own metadata, but what Arrow adds to them."""
    found = {key.decode(): value.decode(errors="replace") for key, value in (metadata or {}).items()}
    return {key: value for key, value in found.items() if key != "ARROW:schema"}
