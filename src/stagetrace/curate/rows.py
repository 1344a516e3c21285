"""The rows that a stage's examples were made of, from Parquet or from a folder of the `datasets` library."""

# pyarrow and datasets leave out their types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from stagetrace.errors import DataError, DescriptionError, refuse

INDEX = "original_index"
"""The column of a filtered copy that says which example of the stage a row is."""


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """A data set as it was before it became examples: row i is example i of the stage.

    place: where it was read, for messages and the note.
    data: a `pyarrow.Table`, or a `datasets.Dataset`, whose features (images, class names) stay with it.
    by: the column of ids by which rows were found for the examples; None where row i is example i as it was read.
    others: rows of the corpus that are no example of the stage; they were not traced, and are in no list.
    """

    place: str
    data: Any
    by: str | None = None
    others: int = 0

    def __len__(self) -> int:
        return len(self.data)

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""
        return self.data.column_names

    def at(self, places: np.ndarray, by: str) -> "Rows":
        """The rows at these places, which were found by a column of ids; one for each example of the stage."""
        others = len(self) - len(places)
        if not others and np.array_equal(places, np.arange(len(self))):
            return replace(self, by=by)
        chosen = self.data.take(pa.array(places)) if isinstance(self.data, pa.Table) else self.data.select(places)
        return Rows(self.place, chosen, by, others)

    def column(self, name: str) -> list[object]:
        """One value a row; of a class its name.

        Raises:
            DescriptionError: no such column.
        """
        if name not in self.columns:
            refuse(f"{self.place} has no column '{name}'; its columns are {', '.join(map(repr, self.columns))}")
        if isinstance(self.data, pa.Table):
            return self.data[name].to_pylist()
        values: list[object] = list(self.data.with_format(None).select_columns(name)[:][name])
        names: Sequence[str] | None = getattr(self.data.features[name], "names", None)
        return values if names is None else [_named(names, value) for value in values]

    def write_parquet(self, indices: Sequence[int], path: Path) -> None:
        """These rows as one Parquet file, with the column `original_index`."""
        found = self._selected(indices)
        if isinstance(found, pa.Table):
            pq.write_table(found, path, compression="zstd")
        else:
            found.to_parquet(str(path))

    def write_hf(self, indices: Sequence[int], path: Path) -> None:
        """These rows as a folder for `datasets.load_from_disk`, with the column `original_index`."""
        found = self._selected(indices)
        (_datasets().Dataset(found) if isinstance(found, pa.Table) else found).save_to_disk(str(path))

    def _selected(self, indices: Sequence[int]) -> Any:
        if INDEX in self.columns:
            refuse(f"{self.place} has a column '{INDEX}' already, which a filtered copy adds; rename it first")
        if isinstance(self.data, pa.Table):
            chosen = pa.array(indices, pa.int64())
            return self.data.take(chosen).append_column(INDEX, chosen)
        return self.data.select(indices).add_column(INDEX, list(indices))


def read_rows(place: str | Path, split: str | None = None) -> Rows:
    """Read the data set at a place.

    Args:
        place: a Parquet or jsonl file, a folder written by `save_to_disk`, or one that `datasets.load_dataset` reads
            (Parquet, CSV, JSON files named by split).
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
        return Rows(str(path), _one(_folder(path), split, path))
    except DescriptionError:
        raise
    except Exception as cause:
        reason = " ".join(str(cause).split())[:200]
        raise DataError(
            f"{path} cannot be read as a data set ({type(cause).__name__}: {reason}); give a Parquet file, or a folder "
            "that datasets.load_dataset or datasets.load_from_disk reads"
        ) from cause


def _file(path: Path, split: str | None) -> Rows:
    if path.suffix not in (".parquet", ".jsonl"):
        refuse(f"{path} is not a Parquet file (.parquet) or a jsonl file; give one, or the folder that it lies in")
    if split is not None:
        refuse(f"{path} is one file, without splits; leave --split out")
    return Rows(str(path), pq.read_table(path) if path.suffix == ".parquet" else _jsonl(path))


def _jsonl(path: Path) -> Any:
    """The lines of a file; texts that look like times, which pyarrow takes for times by default, stay texts."""
    table = pj.read_json(path)
    schema = pa.schema([pa.field(each.name, _with_texts(each.type)) for each in table.schema])
    if schema == table.schema:
        return table
    return pj.read_json(path, parse_options=pj.ParseOptions(explicit_schema=schema))


def _with_texts(kind: Any) -> Any:
    """A type with texts in the place of times."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_with_texts(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(each.name, _with_texts(each.type)) for each in kind])
    return kind


def _folder(path: Path) -> Any:
    datasets = _datasets()
    if any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        return datasets.load_from_disk(str(path))
    found = datasets.load_dataset(str(path))
    if any(path.rglob("*.json*")) and not any(path.rglob("*.parquet")):
        for rows in found.values():
            _refuse_times(rows, path)
    return found


def _refuse_times(rows: Any, path: Path) -> None:
    """JSON has no times: where `datasets` has made them of texts, ids and what is copied would be other texts."""
    schema: Any = rows.features.arrow_schema
    changed = next((each.name for each in schema if _with_texts(each.type) != each.type), None)
    if changed is not None:
        refuse(
            f"{path}: datasets takes the texts of column '{changed}' for times, which changes them; join the files to "
            "one, and give that jsonl file, or write the rows as Parquet"
        )


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
        bound = "has several splits" if split is None else f"has no split '{split}'"
        refuse(f"{path} {bound}; type --split with one of {', '.join(names)}")
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
