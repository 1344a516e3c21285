"""Rows from Parquet and from folders of `datasets`, and their filtered copies, read back by other readers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stagetrace.curate import read_rows
from stagetrace.errors import DataError, DescriptionError

COLUMNS = {"text": [f"text {i}" for i in range(6)], "label": [0, 1, 1, 0, -1, 1], "source": list("aabbab")}
CLASSES = datasets.ClassLabel(names=["bad", "good"])


def plain_file(folder: Path) -> Path:
    pd.DataFrame(COLUMNS).to_parquet(folder / "rows.parquet", index=False)
    return folder / "rows.parquet"


def hub_layout(folder: Path) -> Path:
    pd.DataFrame(COLUMNS).to_parquet(folder / "train-00000-of-00001.parquet", index=False)
    pd.DataFrame(COLUMNS)[:2].to_parquet(folder / "test-00000-of-00001.parquet", index=False)
    return folder


def saved() -> datasets.Dataset:
    return datasets.Dataset.from_dict(COLUMNS).cast_column("label", CLASSES)


def saved_one(folder: Path) -> Path:
    saved().save_to_disk(folder / "one")
    return folder / "one"


def saved_splits(folder: Path) -> Path:
    datasets.DatasetDict({"train": saved(), "test": saved().select([0])}).save_to_disk(folder / "splits")
    return folder / "splits"


PLACES: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    "a file": (plain_file, None),
    "files by split": (hub_layout, "train"),
    "one data set": (saved_one, None),
    "saved splits": (saved_splits, "train"),
}


@pytest.fixture(autouse=True)
def _no_cache_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", PLACES)
def test_rows_are_read_and_copied(name: str, tmp_path: Path):
    make, split = PLACES[name]
    rows = read_rows(make(tmp_path), split)
    assert len(rows) == 6
    assert list(rows.columns) == list(COLUMNS)
    assert rows.column("source") == COLUMNS["source"]
    named = ["bad", "good", "good", "bad", -1, "good"] if "saved" in name or "data set" in name else COLUMNS["label"]
    assert rows.column("label") == named
    out = tmp_path / "out"
    out.mkdir()
    rows.write_parquet([1, 4, 5], out / "a.parquet")
    rows.write_hf([1, 4, 5], out / "hf")
    again: Any = datasets.load_from_disk(out / "hf")
    for found in (pd.read_parquet(out / "a.parquet"), again.to_pandas()):
        assert list(found["original_index"]) == [1, 4, 5]
        for column, values in COLUMNS.items():
            assert list(found[column]) == [values[i] for i in (1, 4, 5)]
    if named != COLUMNS["label"]:
        assert again.features["label"].names == ["bad", "good"]


def test_a_parquet_file_keeps_types_and_metadata(tmp_path: Path):
    table = pa.table({"x": pa.array([[1.0], [2.0], []], pa.list_(pa.float32()))}).replace_schema_metadata({"who": "me"})
    pq.write_table(table, tmp_path / "a.parquet")
    read_rows(tmp_path / "a.parquet").write_parquet([2, 0], tmp_path / "b.parquet")
    found = pq.read_table(tmp_path / "b.parquet")
    assert found.schema.field("x").type == pa.list_(pa.float32())
    assert found["x"].to_pylist() == [[], [1.0]]
    assert found.schema.metadata[b"who"] == b"me"


def broken(folder: Path) -> Path:
    (folder / "a.parquet").write_bytes(b"PAR1 not really")
    return folder / "a.parquet"


def empty(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


def other_file(folder: Path) -> Path:
    (folder / "a.csv").write_text("x\n1\n")
    return folder / "a.csv"


REFUSED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "nothing there": (lambda folder: read_rows(folder / "x"), DescriptionError, "there is no data at"),
    "another file": (lambda folder: read_rows(other_file(folder)), DescriptionError, "is not a Parquet file"),
    "split of a file": (lambda folder: read_rows(plain_file(folder), "train"), DescriptionError, "leave --split out"),
    "split of one": (lambda folder: read_rows(saved_one(folder), "train"), DescriptionError, "leave --split out"),
    "no split named": (lambda folder: read_rows(hub_layout(folder)), DescriptionError, "several splits; type --split"),
    "no such split": (lambda folder: read_rows(hub_layout(folder), "dev"), DescriptionError, "no split 'dev'"),
    "damaged": (lambda folder: read_rows(broken(folder)), DataError, "cannot be read as a data set"),
    "an empty folder": (lambda folder: read_rows(empty(folder)), DataError, "cannot be read as a data set"),
    "no such column": (
        lambda folder: read_rows(plain_file(folder)).column("class"),
        DescriptionError,
        "no column 'class'; its columns are 'text', 'label', 'source'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read(name: str, tmp_path: Path):
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        call(tmp_path)


def test_the_added_column_is_never_hidden(tmp_path: Path):
    rows = read_rows(plain_file(tmp_path))
    rows.write_parquet([0, 1], tmp_path / "once.parquet")
    for write in ("write_parquet", "write_hf"):
        with pytest.raises(DescriptionError, match="'original_index' already"):
            getattr(read_rows(tmp_path / "once.parquet"), write)([0], tmp_path / "twice")
