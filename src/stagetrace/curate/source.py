"""The rows that a stage's examples were made of, from Parquet or from a folder of the `datasets` library."""

# pyarrow and datasets leave out their types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet as pq

from stagetrace.errors import DataError, DescriptionError, refuse

INDEX = "original_index"
"""The column of a filtered copy that says which example of the stage a row is."""


class Rows(ABC):
    """A data set as it was before it became examples: row i is example i of the stage.

    place: where it was read, for messages and the note.
    """

    place: str

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def columns(self) -> Sequence[str]:
        """The names of the columns."""

    @abstractmethod
    def column(self, name: str) -> list[object]:
        """One value a row.

        Raises:
            DescriptionError: no such column.
        """

    @abstractmethod
    def write_parquet(self, indices: Sequence[int], path: Path) -> None:
        """These rows as one Parquet file, with the column `original_index`."""

    @abstractmethod
    def write_hf(self, indices: Sequence[int], path: Path) -> None:
        """These rows as a folder for `datasets.load_from_disk`, with the column `original_index`."""

    def check_column(self, name: str) -> None:
        """Refuse a name that no column has."""
        if name not in self.columns:
            refuse(f"{self.place} has no column '{name}'; its columns are {', '.join(map(repr, self.columns))}")

    def check_index(self) -> None:
        """Refuse data that use the name of the column to be added."""
        if INDEX in self.columns:
            refuse(f"{self.place} has a column '{INDEX}' already, which a filtered copy adds; rename it first")


@final
@dataclass(frozen=True, eq=False)
class Table(Rows):
    """One Parquet file."""

    place: str
    table: Any

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def columns(self) -> Sequence[str]:
        return self.table.column_names

    def column(self, name: str) -> list[object]:
        self.check_column(name)
        return self.table[name].to_pylist()

    def write_parquet(self, indices: Sequence[int], path: Path) -> None:
        self.check_index()
        chosen = pa.array(indices, pa.int64())
        pq.write_table(self.table.take(chosen).append_column(INDEX, chosen), path, compression="zstd")

    def write_hf(self, indices: Sequence[int], path: Path) -> None:
        HuggingFace(self.place, _datasets().Dataset(self.table)).write_hf(indices, path)


@final
@dataclass(frozen=True, eq=False)
class HuggingFace(Rows):
    """A `datasets.Dataset`; its features (images, class names) stay with it."""

    place: str
    data: Any

    def __len__(self) -> int:
        return len(self.data)

    @property
    def columns(self) -> Sequence[str]:
        return self.data.column_names

    def column(self, name: str) -> list[object]:
        self.check_column(name)
        values: list[object] = list(self.data.with_format(None).select_columns(name)[:][name])
        names: Sequence[str] | None = getattr(self.data.features[name], "names", None)
        return values if names is None else [_named(names, value) for value in values]

    def write_parquet(self, indices: Sequence[int], path: Path) -> None:
        self._selected(indices).to_parquet(str(path))

    def write_hf(self, indices: Sequence[int], path: Path) -> None:
        self._selected(indices).save_to_disk(str(path))

    def _selected(self, indices: Sequence[int]) -> Any:
        self.check_index()
        return self.data.select(indices).add_column(INDEX, list(indices))


def read_rows(place: str | Path, split: str | None = None) -> Rows:
    """Read the data set at a place.

    Args:
        place: a Parquet file, a folder written by `save_to_disk`, or one that `datasets.load_dataset` reads (Parquet,
            CSV, JSON files named by split).
        split: which one of a folder with several, such as "train".

    Raises:
        DescriptionError: no such place or split, or `datasets` is needed and not installed.
        DataError: the files cannot be read.
    """
    path = Path(place)
    if not path.exists():
        refuse(f"there is no data at {path}; give a Parquet file, or the folder of a data set")
    try:
        if path.is_file():
            return _file(path, split)
        return HuggingFace(str(path), _one(_folder(path), split, path))
    except DescriptionError:
        raise
    except Exception as cause:
        said = " ".join(str(cause).split())[:200]
        raise DataError(
            f"{path} cannot be read as a data set ({type(cause).__name__}: {said}); give a Parquet file, or a folder "
            "that datasets.load_dataset or datasets.load_from_disk reads"
        ) from cause


def _file(path: Path, split: str | None) -> Rows:
    if path.suffix != ".parquet":
        refuse(f"{path} is not a Parquet file (.parquet); give one, or the folder that it lies in")
    if split is not None:
        refuse(f"{path} is one file, without splits; leave --split out")
    return Table(str(path), pq.read_table(path))


def _folder(path: Path) -> Any:
    datasets = _datasets()
    if any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        return datasets.load_from_disk(str(path))
    return datasets.load_dataset(str(path))


def _one(found: Any, split: str | None, path: Path) -> Any:
    """The split asked for, or the only one."""
    if not isinstance(found, dict):  # a Dataset; several splits come as a DatasetDict
        if split is not None:
            refuse(f"{path} has no splits; leave --split out")
        return found
    names = list(found)
    if split is None and len(names) == 1:
        return found[names[0]]
    if split not in found:
        problem = "has several splits" if split is None else f"has no split '{split}'"
        refuse(f"{path} {problem}; type --split with one of {', '.join(names)}")
    return found[split]


def _named(names: Sequence[str], value: object) -> object:
    """The name of a class; what stands for a missing label (-1, None) stays as it is."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _datasets() -> Any:
    try:
        return import_module("datasets")
    except ImportError as cause:
        raise DescriptionError(
            f"a folder of data is read by the datasets library, which cannot be imported ({cause}); "
            "type: pip install 'stagetrace[hf]', or give one Parquet file"
        ) from cause
