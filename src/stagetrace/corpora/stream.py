"""Streams: read once from end to end, kept on disk, and from then on a data set with a length and indices."""

# pyarrow and datasets have no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stagetrace.corpora.files import place_of
from stagetrace.corpora.parquet import ParquetShards
from stagetrace.errors import DataError, ResultsError, StagetraceError, first_line, refuse
from stagetrace.stages.fingerprint import digest

__all__ = ["Stream"]

RECORD = "stream.json"
FORMAT = 1

LOOKED_AT = 16
"""Rows at the head of a stream that are compared with those that were kept of it."""

_GROUP = 10_000
"""Rows that are written at once."""

_WHERE = "stagetrace.corpora.Stream"


@final
class Stream:
    """The first rows of a stream as a map-style data set of dicts.

    A trace reads every example several times, and a few of them by their index; a stream gives them once, in an order
    of its own. So it is read once and its rows are written to a folder, `spill`; memory holds some thousands of them.
    The same call finds the folder again and reads the first 16 rows of the stream only, to compare them.

    Args:
        rows: a `datasets.IterableDataset`, whose features (class names, images) stay, or any other iterable of dicts of
            plain values: numbers, texts, lists.
        spill: the folder to keep them in; new, or one of this same stream.
        length: how many rows are taken, those that the stage was trained on; None takes all, until the stream ends.

    Raises:
        DescriptionError: what was given is no stream of dicts.
        DataError: the stream ends earlier, a row cannot be written, or has other columns than the first.
        ResultsError: the folder holds something else, or rows of another stream.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = Stream(({"n": n} for n in range(10)), length=3, spill=f"{folder}/kept")
        ...     len(rows), rows[2]
        (3, {'n': 2})
    """

    def __init__(self, rows: Any, *, spill: str | Path, length: int | None = None) -> None:
        if isinstance(rows, (Mapping, str, bytes)) or not hasattr(rows, "__iter__"):
            refuse(
                f"{_WHERE}: rows must be a datasets.IterableDataset or an iterable of dicts, got {type(rows).__name__}"
            )
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            refuse(f"{_WHERE}: length must be a whole number of at least 1, got {length!r}")
        self.folder = Path(spill)
        taken = iter(rows)
        head = list(islice(taken, LOOKED_AT if length is None else min(LOOKED_AT, length)))
        _check_head(head)
        known = {"format": FORMAT, "length": length, "head": digest(head).hex()}
        if not self._holds(known):
            _spill(self.folder, chain(head, taken), getattr(rows, "features", None), _is_hf(rows), length, known)
        self._data = _opened(self.folder)
        self.column_names: tuple[str, ...] = tuple(self._data.column_names)

    @property
    def features(self) -> Any:
        """Those of a stream of `datasets`; None of another."""
        return getattr(self._data, "features", None)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._data[place_of(index, self)]

    def column(self, name: str) -> Any:
        """One value a row.

        Raises:
            DescriptionError: no such column.
        """
        if isinstance(self._data, ParquetShards):
            return self._data.column(name)
        if name not in self.column_names:
            refuse(f"{_WHERE}: there is no column '{name}'; there are {', '.join(map(repr, self.column_names))}")
        return self._data.data.column(name)

    def _holds(self, known: Mapping[str, Any]) -> bool:
        """Whether the folder holds this stream already."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ResultsError(f"{self.folder} is a file, not a folder; choose an empty or new folder (spill=)")
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return False
        path = self.folder / RECORD
        if not path.exists():
            raise ResultsError(f"{self.folder} holds something else (no {RECORD} in it); choose a new folder (spill=)")
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as cause:
            raise ResultsError(f"{path} cannot be read ({first_line(cause)}); delete {self.folder}") from cause
        for name, value in known.items():
            if found.get(name) != value:
                what = {"head": "rows of another stream: the first ones differ", "length": "another number of rows"}
                raise ResultsError(
                    f"{self.folder} holds {what.get(name, 'rows in another format')} "
                    f"(there {str(found.get(name))[:16]}, here {str(value)[:16]}); choose another folder (spill=), or "
                    "delete this one"
                )
        return True

    def __repr__(self) -> str:
        return f"Stream({len(self):,} rows, kept in {self.folder})"


def _is_hf(rows: Any) -> bool:
    return type(rows).__module__.split(".")[0] == "datasets"


def _check_head(head: list[Any]) -> None:
    if not head:
        raise DataError(f"{_WHERE}: the stream is empty; it needs at least one row")
    if not isinstance(head[0], Mapping):
        refuse(f"{_WHERE}: the rows must be dicts with named columns, got {type(head[0]).__name__}")


def _opened(folder: Path) -> Any:
    if (folder / "rows.arrow").exists():
        return import_module("datasets").Dataset.from_file(str(folder / "rows.arrow"))
    return ParquetShards(folder / "rows.parquet")


def _spill(
    folder: Path, rows: Iterator[Any], features: Any, hf: bool, length: int | None, known: Mapping[str, Any]
) -> None:
    """Write the rows to a folder beside, which then takes its place: a killed process leaves nothing half done there.

    Raises:
        DataError: the stream ended early or a row cannot be written. ResultsError: the file system refused.
    """
    staging = folder.resolve().with_name(f".{folder.resolve().name}.{os.getpid()}.saving")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        some = rows if length is None else islice(rows, length)
        count = _as_arrow(some, features, staging) if hf else _as_parquet(some, staging)
        if length is not None and count < length:
            raise DataError(f"{_WHERE}: the stream ended after {count:,} rows, and length={length:,} were to be read")
        (staging / RECORD).write_text(json.dumps({**known, "rows": count}, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # it is empty
        staging.rename(folder)
    except OSError as cause:
        raise ResultsError(
            f"{folder} cannot be written ({first_line(cause)}); choose another folder (spill=)"
        ) from cause
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _as_arrow(rows: Iterable[Any], features: Any, folder: Path) -> int:
    """With the features of `datasets`, as one of its own files."""
    writer = import_module("datasets.arrow_writer").ArrowWriter(
        features=features, path=str(folder / "rows.arrow"), writer_batch_size=1000
    )
    count = 0
    with writer:
        for row in rows:
            try:
                writer.write(row if features is None else features.encode_example(row))
            except StagetraceError:
                raise
            except Exception as cause:  # whatever a row of another kind makes the library raise
                raise DataError(f"{_WHERE}: row {count} cannot be written ({first_line(cause)})") from cause
            count += 1
        writer.finalize()
    return count


def _as_parquet(rows: Iterable[Any], folder: Path) -> int:
    writer, count, rows = None, 0, iter(rows)
    try:
        while some := list(islice(rows, _GROUP)):
            table = _table(some, count, None if writer is None else writer.schema)
            if writer is None:
                _check_schema(table.schema)
                writer = pq.ParquetWriter(folder / "rows.parquet", table.schema, compression="zstd")
            _check_kept(table, some, count)
            writer.write_table(table)
            count += len(some)
    finally:
        if writer is not None:
            writer.close()
    return count


def _check_kept(table: Any, rows: list[Any], start: int) -> None:
    """Refuse rows that come back as others: whole numbers among fractions, dicts with other keys in one column.

    Raises:
        DataError: with the first of them.
    """
    for place, (kept, row) in enumerate(zip(table.to_pylist(), rows, strict=True), start):
        for name, value in row.items():
            if not _same(kept[name], value):
                raise DataError(
                    f"{_WHERE}: '{name}' of row {place} is {str(value)[:60]} and would be kept as "
                    f"{str(kept[name])[:60]}: a column holds values of one kind, and dicts with the same keys; make "
                    "them alike, or keep the value as text (json.dumps)"
                )


def _same(kept: Any, given: Any) -> bool:
    given = given.tolist() if isinstance(given, (np.ndarray, np.generic)) else given
    if isinstance(given, Mapping):
        return isinstance(kept, dict) and kept.keys() == given.keys() and all(_same(kept[k], given[k]) for k in kept)
    if isinstance(given, (list, tuple)):
        alike = isinstance(kept, list) and len(kept) == len(given)
        return alike and all(_same(one, other) for one, other in zip(kept, given, strict=True))
    if isinstance(given, float):
        return isinstance(kept, float) and (kept == given or given != given)
    return type(kept) is type(given) and bool(kept == given)


def _table(rows: list[Any], start: int, schema: Any) -> Any:
    """The rows as Arrow has them, with the columns of the first."""
    first = set(rows[0]) if schema is None else set(schema.names)
    for place, row in enumerate(rows, start):
        if not isinstance(row, Mapping) or set(row) != first:
            has = list(row) if isinstance(row, Mapping) else f"a {type(row).__name__}"
            raise DataError(f"{_WHERE}: row {place} has {has}, and the first row the columns {sorted(first)}")
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as cause:
        kinds = pa.Table.from_pylist(rows[:1]).schema if schema is None and _fits(rows[0], None) else schema
        odd = next((place for place, row in enumerate(rows) if not _fits(row, kinds)), 0)
        raise DataError(
            f"{_WHERE}: row {start + odd} cannot be written ({first_line(cause)}); its values must be numbers, texts "
            "or lists of these, of the same kind in every row"
        ) from cause


def _fits(row: Any, schema: Any) -> bool:
    try:
        pa.Table.from_pylist([row], schema=schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True


def _check_schema(schema: Any) -> None:
    """Refuse a column that is empty in all of the first rows: what it will hold is not known."""
    for field in schema:
        if pa.types.is_null(field.type):
            raise DataError(
                f"{_WHERE}: the column '{field.name}' is None in each of the first {_GROUP:,} rows, so that its kind "
                "is not known; leave it out, e.g. by ({...} for row in rows)"
            )
