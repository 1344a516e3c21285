"""Parquet shards: rows of one or many files with the same columns."""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq

from stagetrace.corpora.files import Places, Shard, called, found, place_of, reading, refuse_nothing
from stagetrace.errors import refuse

__all__ = ["ParquetShards"]

_GROUPS = 2
"""Row groups that are held: the one that is read, and the one before."""

_BLOCK = 64
"""Rows that become Python objects together."""

_LARGEST = 2**31
"""Bytes of a row group, not compressed, beyond which a file is refused: it is held whole."""

_WHERE = "stagetrace.corpora.ParquetShards"


@final
class ParquetShards:
    """The rows of Parquet files as a map-style data set of dicts.

    The row group of the row that is asked for is read, and held with the one before it; so write row groups of some
    tens of thousands of rows (`row_group_size=`), for a group is what takes memory.

    Args:
        files: a path, a pattern such as `"corpus/*.parquet"` (files in the order of their names), or a list of these.
        columns: those that are read; None reads all.

    Raises:
        DescriptionError: no such files or columns, files of different columns, or row groups too large to be held.
        DataError: a file is cut off or damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for shard, texts in enumerate([["a", "b"], ["c"]]):
        ...         pq.write_table(pa.table({"text": texts}), f"{folder}/{shard}.parquet")
        ...     rows = ParquetShards(f"{folder}/*.parquet")
        ...     len(rows), rows[2]
        (3, {'text': 'c'})
    """

    def __init__(self, files: str | Path | Sequence[str | Path], columns: Sequence[str] | None = None) -> None:
        self._shards = found(files, ".parquet", _WHERE)
        groups, sizes, schema = list[tuple[int, int]](), list[int](), None
        for number, shard in enumerate(self._shards):
            with reading(shard.path), pq.ParquetFile(shard.path) as file:
                schema = _same(file.schema_arrow, schema, shard, self._shards[0])
                for group in range(file.metadata.num_row_groups):
                    held = file.metadata.row_group(group)
                    _check_size(held, shard)
                    groups.append((number, group))
                    sizes.append(held.num_rows)
        self.column_names = _chosen(schema, columns)
        self._groups, self._places = groups, Places(sizes or [0])
        self._tables: dict[int, Any] = {}
        self._block, self._first = list[dict[str, Any]](), 0
        if not len(self):
            refuse_nothing(self._shards, _WHERE, "no row")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = index - self._first if hasattr(index, "__index__") else -1
        if not 0 <= place < len(self._block):
            place = self._fetch(place_of(index, self))
        return dict(self._block[place])

    def column(self, name: str) -> Any:
        """A column of all rows, as a `pyarrow.ChunkedArray`.

        Raises:
            DescriptionError: no such column. DataError: a file cannot be read.
        """
        parts = list[Any]()
        for shard in self._shards:
            shard.check()
            with reading(shard.path), pq.ParquetFile(shard.path) as file:
                _chosen(file.schema_arrow, [name])
                parts += file.read([name], use_threads=False)[name].chunks
        return pa.chunked_array(parts)

    def place(self, index: int) -> str:
        """Where an example lies: the file, and the row in it from 0."""
        index = place_of(index, self)
        number, _ = self._places.of(index)
        shard = self._groups[number][0]
        first = next(place for place, (of, _) in enumerate(self._groups) if of == shard)
        before = int(self._places.ends[first - 1]) if first else 0
        return f"{self._shards[shard].path}, row {index - before}"

    def _fetch(self, index: int) -> int:
        """Make Python objects of the rows around an example, in the place of what was held; its place among them."""
        number, place = self._places.of(index)
        start = place - place % _BLOCK
        self._block, self._first = self._table(number).slice(start, _BLOCK).to_pylist(), index - (place - start)
        return place - start

    def _table(self, number: int) -> Any:
        """A row group, and no more than one other is held."""
        if number not in self._tables:
            of, group = self._groups[number]
            shard = self._shards[of]
            shard.check()
            with reading(shard.path, f"row group {group}"), pq.ParquetFile(shard.path) as file:
                table = file.read_row_group(group, columns=list(self.column_names), use_threads=False)
            while len(self._tables) >= _GROUPS:
                self._tables.pop(next(iter(self._tables)))
            self._tables[number] = table
        return self._tables[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}, "_block": [], "_first": 0}

    def __repr__(self) -> str:
        return f"ParquetShards({len(self):,} rows of {called(self._shards)}, columns {', '.join(self.column_names)})"


def _same(schema: Any, first: Any, shard: Shard, one: Shard) -> Any:
    """The schema of all files."""
    bare = schema.remove_metadata()
    if first is None or bare.equals(first):
        return bare
    ours, theirs = ({field.name: str(field.type) for field in each} for each in (bare, first))
    odd = [
        f"'{name}' is {ours.get(name, 'not there')} and {theirs.get(name, 'not there')}"
        for name in {**theirs, **ours}
        if ours.get(name) != theirs.get(name)
    ] or ["they stand in another order"]
    refuse(f"{shard.path} has other columns than {one.path}: {'; '.join(odd)}; write all files with one schema")


def _chosen(schema: Any, columns: Sequence[str] | None) -> tuple[str, ...]:
    names: list[str] = schema.names
    if columns is not None and not columns:
        refuse(f"{_WHERE}: columns must name at least one of {', '.join(map(repr, names))}")
    columns = (columns,) if isinstance(columns, str) else columns
    for name in columns or ():
        if name not in names:
            refuse(f"{_WHERE}: there is no column '{name}'; there are {', '.join(map(repr, names))}")
    return tuple(names if columns is None else columns)


def _check_size(group: Any, shard: Shard) -> None:
    if group.total_byte_size > _LARGEST:
        refuse(
            f"{shard.path} has a row group of {group.num_rows:,} rows and {group.total_byte_size / 2**30:.1f} GiB, "
            "which would be held whole; write smaller ones: pq.write_table(..., row_group_size=20_000)"
        )
