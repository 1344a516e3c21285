"""What the examples looked like: kept with the run, so that a report outlives the data.

DIR/previews.parquet holds a row for each example that a report may show; its metadata hold what is said once.
"""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from stagetrace.errors import refuse
from stagetrace.results.files import RECORD, atomic, read_as
from stagetrace.results.manifest import read_manifest

NAME = "previews.parquet"
FORMAT = "3"

Kind = Literal["image", "text", "table"]

_FACTS = b"facts"
_SCHEMA = pa.schema(
    [
        ("stage", pa.string()),
        ("index", pa.int64()),
        ("kind", pa.string()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("fields", pa.list_(pa.list_(pa.string()))),
        ("cut", pa.int64()),
        ("label", pa.string()),
        ("prediction", pa.string()),
        ("loss", pa.float64()),
        ("pieces", pa.list_(pa.string())),
    ]
)
_BEFORE = {b"2": pa.schema(list(_SCHEMA)[:-1])}
"""Formats that are read, too: without an example's tokens in words."""


@final
@dataclass(frozen=True)
class Preview:
    """What one example looks like.

    stage: whose example it is; None for a query example.
    index: in that data set.
    kind: which of `image` (PNG), `text` and `fields` (pairs of a name and a value) is to be shown.
    cut: characters of the text that were left out at its end.
    label: the example's class or target in words; "" if the data does not say.
    prediction, loss: of a query example, by the last stage's model; loss is None where it was not measured.
    pieces: of a text whose tokens have scores, the tokens in words, one for each position.

    Raises:
        DescriptionError: a kind that does not exist, or a negative index.
    """

    stage: str | None
    index: int
    kind: Kind
    text: str = ""
    image: bytes = b""
    fields: tuple[tuple[str, str], ...] = ()
    cut: int = 0
    label: str = ""
    prediction: str = ""
    loss: float | None = None
    pieces: tuple[str, ...] = ()

    @property
    def look(self) -> tuple[object, ...] | None:
        """What people see of an example: equal for two that look the same; None where not all of it was kept."""
        if self.cut or any(value.endswith("...") for _, value in self.fields):
            return None
        return self.kind, self.text, self.image, self.fields, self.label

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            refuse(f"Preview: kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.index < 0:
            refuse(f"Preview: index must be at least 0, got {self.index}")


@final
@dataclass(frozen=True)
class Previews:
    """All previews of a run, and what is said once: facts such as the mean query loss, as JSON holds them."""

    items: tuple[Preview, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def by_place(self) -> dict[tuple[str | None, int], Preview]:
        """The previews by stage (None: the query) and index."""
        return {(item.stage, item.index): item for item in self.items}


def write_previews(folder: Path, previews: Previews) -> None:
    """Write `previews.parquet`, atomically; the same previews give the same bytes.

    Raises:
        ResultsError: the file system refused.
    """
    rows = [{name: _storable(getattr(item, name)) for name in _SCHEMA.names} for item in previews.items]
    facts = whole_characters(json.dumps(dict(previews.facts), ensure_ascii=False, allow_nan=False, sort_keys=True))
    metadata = {"format": FORMAT, "run": _run(folder), "facts": facts}
    table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(metadata))
    with atomic(folder / NAME) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_previews(folder: Path) -> Previews | None:
    """The previews of a run; None if none were kept.

    Raises:
        ResultsError: the file is damaged, of another run, or of another format.
    """
    path = folder / NAME
    if not path.exists():
        return None
    remedy = f"delete this file, and type `stagetrace report {folder} --target TARGET` to make it again"
    with read_as(path, "previews", remedy), pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema, metadata = file.schema_arrow, file.schema_arrow.metadata or {}
        expected = _BEFORE.get(metadata.get(b"format") or b"", _SCHEMA)
        if expected is _SCHEMA and metadata.get(b"format") != FORMAT.encode():
            raise ValueError(f"its format is {metadata.get(b'format')!r}, not {FORMAT!r}")
        if metadata.get(b"run") != _run(folder).encode():
            raise ValueError("it belongs to another run")
        if not schema.equals(expected):
            raise ValueError(f"its columns are not {', '.join(expected.names)}, each of its kind")
        items = tuple(_preview(row) for row in file.read().to_pylist())
        return Previews(items, _facts(json.loads(metadata[_FACTS])))


def whole_characters(text: str) -> str:
    """The text without halves of characters, which no file can hold: those are written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _run(folder: Path) -> str:
    """The run of the folder, by the digest of its description; "" where there is none."""
    return read_manifest(folder).run if (folder / RECORD).exists() else ""


def _storable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_storable(part) for part in value]
    return whole_characters(value) if isinstance(value, str) else value


def _facts(record: Any) -> dict[str, Any]:
    """The facts, each of its kind; a number that says nothing is left out."""
    facts = dict(record)
    count, loss = facts.get("query_examples"), facts.get("query_loss")
    if not isinstance(count, int | None) or not isinstance(loss, int | float | None):
        raise ValueError(f"its query is of {count!r} examples with the loss {loss!r}")
    if not isinstance(facts.get("command", ""), str):
        raise ValueError("its command is no text")
    return {**facts, "query_loss": None if loss is None else float(loss)}


def _preview(row: Mapping[str, Any]) -> Preview:
    empty = [name for name, value in row.items() if value is None and name not in ("stage", "loss")]
    if empty:
        raise ValueError(f"a preview has no {empty[0]}")
    fields: dict[str, Any] = {**row, "fields": tuple((name, value) for name, value in row["fields"])}
    fields["pieces"] = tuple(row.get("pieces", ()))
    return Preview(**fields)
