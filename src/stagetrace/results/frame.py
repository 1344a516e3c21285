"""A pandas frame, for those who have pandas: it is not needed for anything else."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from stagetrace.errors import DescriptionError

if TYPE_CHECKING:
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]


def frame(columns: Mapping[str, Sequence[object]], index: Sequence[object] | None = None) -> "DataFrame":
    """The columns as a `pandas.DataFrame`.

    Raises:
        DescriptionError: pandas is not installed.
    """
    try:
        pandas = import_module("pandas")
    except ImportError as cause:
        raise DescriptionError(
            "to_pandas() needs pandas, which is not installed; type: pip install pandas "
            "(or read the Parquet files of a saved run with any other reader)"
        ) from cause
    return pandas.DataFrame(dict(columns), index=index)
