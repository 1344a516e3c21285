"""Broken corpora: what is wrong, in which file, and where in it."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stagetrace.corpora import Jsonl, ParquetShards, Stream, TarShards, TokenFile
from stagetrace.errors import StagetraceError
from tests.corpora import files

GOOD = '{"text": "one"}\n'
Case = tuple[Callable[[Path], Any], str]


def lines(content: str | bytes) -> Callable[[Path], Any]:
    def read(folder: Path) -> Jsonl:
        (folder / "a.jsonl").write_text(GOOD)
        raw = content.encode() if isinstance(content, str) else content
        (folder / "b.jsonl").write_bytes(raw)
        return Jsonl(folder / "*.jsonl")

    return read


def tables(*columns: dict[str, list[Any]]) -> Callable[[Path], Any]:
    def read(folder: Path) -> ParquetShards:
        for number, each in enumerate(columns):
            pq.write_table(pa.table(each), folder / f"{number}.parquet")
        return ParquetShards(folder / "*.parquet")

    return read


def cut(kind: str, name: str, share: float) -> Callable[[Path], Any]:
    """A file of the corpus, less its end."""

    def read(folder: Path) -> Any:
        files.KINDS[kind](folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])
        reader = {"jsonl": Jsonl, "parquet": ParquetShards, "tar": TarShards}[kind]
        return reader(folder / f"*.{kind}")

    return read


def damaged(folder: Path) -> Any:
    data = files.KINDS["parquet"](folder)
    path = folder / "0.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(bytes(content))
    del data
    return ParquetShards(folder / "*.parquet")[0]


def tarred(examples: list[tuple[str, dict[str, bytes]]]) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        files.write_tar(folder / "a.tar", examples)
        data = TarShards(folder / "a.tar")
        return [data[index] for index in range(len(data))]

    return read


def packed(folder: Path) -> Any:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(GOOD.encode()))
    return Jsonl(folder / "a.jsonl.gz")


def misnamed(name: str, reader: Any, content: bytes) -> Callable[[Path], Any]:
    """A packed file whose name does not say so."""

    def read(folder: Path) -> Any:
        (folder / name).write_bytes(content)
        return reader(folder / name)

    return read


def tokens(**settings: Any) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        np.arange(10, dtype=np.uint16).tofile(folder / "a.bin")
        asked: dict[str, Any] = {"dtype": "uint16", "length": 3, **settings}
        data = TokenFile(folder / "a.bin", **asked)
        return data.documents() if "documents" in settings else data

    return read


def streamed(*rows: Any) -> Callable[[Path], Any]:
    return lambda folder: Stream(rows, spill=folder / "kept")


CASES: dict[str, Case] = {
    "not JSON": (lines(f"{GOOD}{{'text': 1}}\n"), r"b\.jsonl, line 2 is not JSON"),
    "cut off": (lines(f'{GOOD}{{"text": "tw'), r"b\.jsonl, line 2 is not JSON .* was it cut off"),
    "not UTF-8": (lines(GOOD.encode() * 2 + b'{"text": "caf\xe9"}\n'), r"b\.jsonl, line 3 is not in UTF-8 \(byte 13"),
    "no object": (lines(f"{GOOD}\n[1]\n"), r"b\.jsonl, line 3 must be an object .* got a list"),
    "no file": (lambda folder: Jsonl(folder / "*.jsonl"), "no file fits the pattern"),
    "a folder": (lambda folder: Jsonl(folder), r"is a folder; type '.*\*\.jsonl'"),
    "packed": (packed, r"is packed \(\.gz\).*unpack it"),
    "gzip as jsonl": (misnamed("a.jsonl", Jsonl, gzip.compress(b"{}")), r"a\.jsonl is packed \(gzip\).*unpack it"),
    "bzip2 as tar": (misnamed("a.tar", TarShards, bz2.compress(b"0" * 999)), r"a\.tar is packed \(bzip2\)"),
    "zip as Parquet": (misnamed("a.parquet", ParquetShards, b"PK\x03\x04"), r"a\.parquet is packed \(zip\)"),
    "twice": (lambda folder: Jsonl([_touched(folder / "a.jsonl", GOOD)] * 2), "is there twice"),
    "another ending": (lambda folder: ParquetShards([_touched(folder / "a.csv")]), r"does not end in \.parquet"),
    "empty file": (lambda folder: Jsonl([_touched(folder / "a.jsonl")]), r"a\.jsonl holds nothing at all"),
    "blank file": (lambda folder: Jsonl([_touched(folder / "a.jsonl", "\n\n")]), r"a\.jsonl holds no line"),
    "shard cut off": (cut("parquet", "1.parquet", 0.8), r"1\.parquet cannot be read .* is the file whole"),
    "page damaged": (damaged, r"0\.parquet, row group 0 cannot be read"),
    "other columns": (tables({"a": [1]}, {"a": ["x"]}), "'a' is string and int64; write all files with one schema"),
    "no column": (lambda folder: ParquetShards([_table(folder)], columns=["b"]), "no column 'b'; there are 'a'"),
    "no rows": (tables({"a": []}), r"0\.parquet holds no row"),
    "tar cut off": (cut("tar", "2.tar", 0.3), r"2\.tar"),
    "no tar": (lambda folder: TarShards([_touched(folder / "a.tar", "x" * 2000)]), r"a\.tar is not a tar file"),
    "key twice": (tarred([("a", {"txt": b""}), ("b", {"txt": b""}), ("a", {"cls": b"1"})]), "files of a do not follow"),
    "file twice": (tarred([("a", {"txt": b"hi"}), ("a", {"txt": b"yo"})]), r"a\.tar: a has the file '\.txt' twice"),
    "no picture": (tarred([("a", {"jpg": b"nothing"})]), r"a\.tar, a\.jpg cannot be read"),
    "no class": (tarred([("a", {"cls": b"dog"})]), r"a\.tar, a\.cls cannot be read \(ValueError"),
    "no dicts": (streamed(1, 2), "rows must be dicts with named columns, got int"),
    "no stream": (lambda folder: Stream(3, spill=folder / "kept"), "got int"),
    "an empty stream": (streamed(), "the stream is empty"),
    "other keys": (streamed({"a": 1}, {"b": 1}), "row 1 has .*'b'.*the first row the columns"),
    "other kinds": (streamed({"a": 1}, {"a": "x"}), "row 1 cannot be written"),
    "always None": (streamed({"a": None}, {"a": None}), "column 'a' is None in each of the first"),
    "too short": (tokens(length=11), "holds 10 tokens, less than a row"),
    "other numbers": (tokens(dtype="uint64"), "20 bytes, no whole number of uint64"),
    "floats": (tokens(dtype="float32"), "dtype must be the kind"),
    "no dtype": (tokens(dtype="uint99"), "dtype must be the kind"),
    "an order beyond": (tokens(order=[0, 3]), r"order\[1\] is 3, but the file has the rows 0 to 2"),
    "documents within a row": (tokens(documents=[0, 4]), "example 1 holds tokens of the documents 0, 1"),
    "documents not in order": (tokens(documents=[0, 5, 4]), "ascending from 0"),
}


def _touched(path: Path, content: str = "") -> Path:
    path.write_text(content)
    return path


def _table(folder: Path) -> Path:
    pq.write_table(pa.table({"a": [1]}), folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_by_name(case: str, tmp_path: Path):
    read, message = CASES[case]
    with pytest.raises(StagetraceError, match=message):
        read(tmp_path)
