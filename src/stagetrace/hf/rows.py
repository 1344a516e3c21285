"""Rows with named columns: what a data set must be, and a cheap look at the first of them."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from stagetrace.errors import DataError, refuse

LOOKED_AT = 10_000
"""Rows that are examined for notices: empty texts, truncated texts, the kind of the labels."""

FRAMES = {
    "pandas": "datasets.Dataset.from_pandas(frame)",
    "polars": "datasets.Dataset.from_polars(frame)",
    "pyarrow": "datasets.Dataset(table)",
}
"""Packages whose tables are no rows of dicts -> what makes a data set of one."""


_CORPORA = {".jsonl": "Jsonl", ".parquet": "ParquetShards", ".tar": "TarShards"}
"""What reads files of this ending."""


def first_row(rows: Any, where: str) -> Mapping[str, Any]:
    """The first row of a data set of rows with named columns.

    Raises:
        DescriptionError: a name, a dict of splits, a stream, a loader, a table of another package, rows without names.
        DataError: the data set is empty, or its first row cannot be read.
    """
    if isinstance(rows, (str, Path)):
        kind = _CORPORA.get(Path(rows).suffix)
        if kind is not None:
            refuse(f"{where}: data is the string {str(rows)!r}; type stagetrace.corpora.{kind}({str(rows)!r})")
        refuse(
            f"{where}: data is the string {str(rows)!r}; load it first, e.g. "
            f"datasets.load_dataset({str(rows)!r}, split='train')"
        )
    if isinstance(rows, Mapping) and rows and all(_is_column(values) for values in rows.values()):
        refuse(f"{where}: data is a dict of columns; type datasets.Dataset.from_dict(data)")
    if isinstance(rows, Mapping):
        some = ", ".join(map(repr, list(rows)[:4]))
        refuse(f"{where}: data is a dict of {some}; pass one split of it, e.g. data[{next(iter(rows), 'train')!r}]")
    package = type(rows).__module__.split(".")[0]
    if package in FRAMES:
        refuse(f"{where}: data is a table of {package} ({type(rows).__name__}); type {FRAMES[package]}")
    indexed = hasattr(type(rows), "__len__") and hasattr(type(rows), "__getitem__")
    if not indexed or type(rows).__name__ == "DataLoader":
        refuse(
            f"{where}: data must be a data set with a length and indices, got {type(rows).__name__}; of a stream type "
            "stagetrace.corpora.Stream(data, length=n, spill='FOLDER') with the n rows that were trained on, of a "
            "loader give its dataset"
        )
    if len(rows) == 0:
        raise DataError(f"{where}: the data set is empty; it needs at least one example")
    try:
        row = rows[0]
    except Exception as cause:
        raise DataError(
            f"{where}: example 0 cannot be read ({type(cause).__name__}: {cause}){_instead(rows)}"
        ) from cause
    if not isinstance(row, Mapping):
        refuse(
            f"{where}: the examples of data must be dicts with named columns, got {type(row).__name__}; for texts "
            "alone write [{'text': text} for text in texts]"
        )
    return row


def some_values(rows: Any, column: str) -> list[Any]:
    """A column's first values, where they are at hand: of a list, or of a `datasets.Dataset` without a transform."""
    if isinstance(rows, list):
        some: list[Any] = rows[:LOOKED_AT]
        return [row[column] for row in some if isinstance(row, Mapping) and column in row]
    if type(rows).__module__.split(".")[0] != "datasets" or rows.format["type"] is not None:
        return []
    return list(rows.select_columns([column])[:LOOKED_AT][column])


def present(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row that hold something: `datasets` fills what a row has not with None."""
    return [name for name in row if row[name] is not None]


def is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value has an entry per token, say: a list, a tuple, an array or a tensor, not a string or a number."""
    if isinstance(value, (str, bytes)):
        return False
    return isinstance(value, Sequence) or bool(getattr(value, "shape", ()))


def _instead(rows: Any) -> str:
    """What to type where `datasets` cannot decode its sounds, for want of a package that reads all kinds of files."""
    features = getattr(rows, "features", None) or {}
    names = [name for name, one in features.items() if type(one).__name__ == "Audio" and getattr(one, "decode", False)]
    if not names or find_spec("torchcodec") is not None:
        return ""
    return (
        f"; type: data.cast_column('{names[0]}', datasets.Audio(decode=False)), whose wav files are read without "
        "torchcodec, or pip install torchcodec"
    )


def _is_column(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and not any(isinstance(value, Mapping) for value in values)
