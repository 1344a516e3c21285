"""One small corpus, written in every way that can be read."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from stagetrace.corpora import Jsonl, ParquetShards, Stream, TarShards

ROWS: list[dict[str, Any]] = [
    {"id": f"doc-{n}", "text": f"the {'big ' * n}cät sat", "label": n % 3, "tokens": list(range(n + 1))}
    for n in range(11)
]
CUTS = (0, 4, 5, 11)
"""Where files begin and end."""


def shards(rows: Sequence[Any] = ROWS) -> list[Sequence[Any]]:
    return [rows[start:stop] for start, stop in pairwise(CUTS)]


def jsonl(folder: Path) -> Jsonl:
    for number, some in enumerate(shards()):
        lines = "\n\n".join(json.dumps(row, ensure_ascii=number == 0) for row in some)  # blank lines between
        (folder / f"{number}.jsonl").write_text(lines if number == 1 else f"{lines}\n", encoding="utf-8")
    return Jsonl(folder / "*.jsonl")


def parquet(folder: Path) -> ParquetShards:
    for number, some in enumerate(shards()):
        pq.write_table(pa.Table.from_pylist(list(some)), folder / f"{number}.parquet", row_group_size=2)
    return ParquetShards(str(folder / "*.parquet"))


def write_tar(path: Path, examples: Sequence[tuple[str, dict[str, bytes]]]) -> None:
    with tarfile.open(path, "w") as file:
        for key, fields in examples:
            for name, content in fields.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))


def tar(folder: Path) -> TarShards:
    for number, some in enumerate(shards()):
        examples = [
            (row["id"], {"txt": row["text"].encode(), "cls": b"%d" % row["label"], "json": json.dumps(row).encode()})
            for row in some
        ]
        write_tar(folder / f"{number}.tar", examples)
    return TarShards([folder / f"{number}.tar" for number in range(3)])


def stream(folder: Path) -> Stream:
    return Stream(iter([*ROWS, *ROWS]), length=len(ROWS), spill=folder / "kept")


def hf_stream(folder: Path) -> Stream:
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "tokens": datasets.List(datasets.Value("int32")),
        }
    )
    return Stream(datasets.Dataset.from_list(ROWS, features=features).to_iterable_dataset(), spill=folder / "kept")


KINDS: dict[str, Callable[[Path], Any]] = {
    "jsonl": jsonl,
    "parquet": parquet,
    "tar": tar,
    "stream": stream,
    "stream of datasets": hf_stream,
}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it was written."""
    if "__key__" in row:
        assert (row["txt"], row["cls"], row["__key__"]) == (
            row["json"]["text"],
            row["json"]["label"],
            row["json"]["id"],
        )
        return row["json"]
    return row
