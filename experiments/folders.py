"""Data sets in the Hugging Face layout: what `datasets.load_dataset` reads from a folder."""

from pathlib import Path
from typing import Any

from stagetrace.errors import DataError


def open_split(folder: Path, split: str) -> Any:
    """One split of a folder's data set, as a `datasets.Dataset`.

    Raises:
        DataError: no folder, no data set, no such split, or no rows in it.
    """
    import datasets  # slow to import, and wanted here only

    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}; --data names the folder that holds it, --dataset another data set"
        )
    datasets.disable_progress_bars()
    try:
        splits: Any = datasets.load_dataset(str(folder))
    except Exception as cause:
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise DataError(f"{folder} is not a data set in the Hugging Face layout ({line})") from cause
    if split not in splits:
        raise DataError(f"{folder}: there is no split '{split}'; it has {', '.join(map(repr, splits))}")
    if len(splits[split]) == 0:
        raise DataError(f"{folder}: the split '{split}' is empty")
    return splits[split]
