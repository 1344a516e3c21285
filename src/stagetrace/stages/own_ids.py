"""Whose ids a data set's examples have: those that were asked for, or those that it brings."""

# datasets leaves out its types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Any

from stagetrace.errors import DataError, first_line, refuse
from stagetrace.stages.ids import Ids

__all__ = ["COLUMN", "AskedIds", "ids_of", "rows_of"]

COLUMN = "id"
"""The column that is taken for the ids of rows where none is named."""

AskedIds = str | Sequence[str | int] | None
"""What `Stage(ids=...)` takes."""

_AT_ONCE = 10_000


def ids_of(data: Any, asked: AskedIds, where: str) -> tuple[Ids | None, str | None]:
    """The ids of a data set's examples, as asked for or its own, if any; and a notice of a column that was passed over.

    Its own are the attribute `ids` of the data set, or its column `id`, where the rows are a `datasets.Dataset` or a
    list of dicts and every value is a text or a whole number and is used once.

    Raises:
        DescriptionError: another number of ids than examples, or something else than a column's name and a sequence.
        DataError: ids that are not unique, or a column that a row lacks.
    """
    if asked is None:
        try:
            return _own(data, where), None
        except DataError as cause:
            return None, f"{cause}; the column '{COLUMN}' is not taken for ids, and examples have their indices alone"
    if isinstance(asked, str):
        return Ids(_column(data, asked, where), where, f"column '{asked}'"), None
    if (
        isinstance(asked, (bytes, Mapping, Set))
        or not hasattr(type(asked), "__len__")
        or not hasattr(asked, "__iter__")
    ):
        refuse(f"{where}: ids must be the name of a column, or a sequence with an id for each example, got {asked!r}")
    if len(asked) != len(data):
        refuse(f"{where}: there must be one id for each of the {len(data):,} examples, got {len(asked):,}")
    return (asked if isinstance(asked, Ids) else Ids(asked, where)), None


def rows_of(data: Any) -> Any:
    """The rows that a data set was made of, where it still has them."""
    rows = getattr(data, "rows", data)
    fits = hasattr(type(rows), "__getitem__") and hasattr(type(rows), "__len__") and len(rows) == len(data)
    return rows_of(rows) if fits and rows is not data else data


def _own(data: Any, where: str) -> Ids | None:
    """Those that the rows bring, if they can serve as ids."""
    rows = rows_of(data)
    if type(rows).__name__ == "Subset" and hasattr(rows, "indices"):  # torch.utils.data's
        whole = _own(rows.dataset, where)
        chosen = [int(index) for index in rows.indices]
        return whole.take(chosen) if whole is not None and len(set(chosen)) == len(chosen) else None
    given = getattr(rows, "ids", None)
    if isinstance(given, Ids) and len(given) == len(data):
        return given
    if COLUMN not in _columns_at_hand(rows):
        return None
    return Ids(_column(data, COLUMN, where), where, f"column '{COLUMN}'")


def _columns_at_hand(rows: Any) -> Iterable[Any]:
    """The names of the columns that can be read without reading examples one by one."""
    if isinstance(rows, list):
        first: Any = rows[0] if rows else None
        return first if isinstance(first, Mapping) else ()
    return rows.column_names if _is_arrow(rows) or _gives_columns(rows) else ()


def _column(data: Any, name: str, where: str) -> Iterable[Any]:
    """A column's values, one after the other."""
    rows = rows_of(data)
    if _gives_columns(rows):
        return rows.column(name)
    if _is_arrow(rows):
        if name not in rows.column_names:
            refuse(f"{where}: ids='{name}', but there is no such column; there are {', '.join(rows.column_names)}")
        plain = rows.with_format(None).select_columns([name])
        return chain.from_iterable(plain[start : start + _AT_ONCE][name] for start in range(0, len(plain), _AT_ONCE))
    return _one_by_one(rows, name, where)


def _one_by_one(rows: Any, name: str, where: str) -> Iterator[Any]:
    for index in range(len(rows)):
        try:
            row = rows[index]
        except Exception as cause:
            raise DataError(f"{where}: example {index} cannot be read ({first_line(cause)})") from cause
        if not isinstance(row, Mapping) or name not in row:
            has = f"has {list(row)[:6]}" if isinstance(row, Mapping) else f"is a {type(row).__name__}"
            raise DataError(f"{where}: ids='{name}' names a column, but example {index} {has}; give a sequence of ids")
        yield row[name]


def _is_arrow(rows: Any) -> bool:
    return type(rows).__module__.split(".")[0] == "datasets" and hasattr(rows, "with_format")


def _gives_columns(rows: Any) -> bool:
    """Whether a data set gives its columns by itself, as those of `stagetrace.corpora` do."""
    return callable(getattr(rows, "column", None)) and hasattr(rows, "column_names") and not _is_arrow(rows)
