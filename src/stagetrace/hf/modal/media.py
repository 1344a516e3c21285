"""A row with an image or a sound -> the same row with what a model reads of it."""

from collections.abc import Mapping
from typing import Any, Protocol

from stagetrace.errors import DataError

Row = Mapping[str, Any]


class Media(Protocol):
    """Makes features of a row's image or sound: a function of the row alone."""

    def __call__(self, row: Row, index: int, where: str) -> dict[str, Any]:
        """The row of example `index` with features (`pixel_values`, `input_values`, ...) in the place of that column.

        where: whose example it is, for messages.

        Raises:
            DataError: what the column holds cannot be read; with the example's index.
        """
        ...

    def of(self, row: Row, where: str) -> "Media":
        """The same for another data set, of which this is the first row: its column may have another name.

        Raises:
            DescriptionError: no column of it can be meant.
        """
        ...


def cell(row: Any, column: str, index: int, where: str) -> Any:
    """What a row has in a column.

    Raises:
        DataError: nothing.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: example {index} must be a dict with named columns, got {type(row).__name__}")
    if column not in row:
        raise DataError(f"{where}: example {index} has no '{column}'; it has {list(row)}; leave it out")
    if row[column] is None:
        raise DataError(f"{where}: '{column}' of example {index} is None; leave the example out")
    return row[column]


def replaced(row: Row, column: str, features: Mapping[str, Any]) -> dict[str, Any]:
    """The row with one example's features, which a processor gave as a batch of one."""
    rest = {name: value for name, value in row.items() if name != column}
    return {**rest, **{name: value[0] for name, value in features.items()}}
