"""What the examples looked like: kept with the run, so that a report outlives the data.

DIR/previews.parquet holds a row for each example that a report may show; its metadata hold what is said once.
"""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, final

import pyarrow as pa
import pyarrow.parquet as pq

from stagetrace.report.preview import Preview, Sound, Turn, whole_characters
from stagetrace.results.files import RECORD, atomic, read_as
from stagetrace.results.manifest import read_manifest

NAME = "previews.parquet"
FORMAT = "4"

_FACTS = b"facts"
_STRINGS = pa.list_(pa.string())
_OLDEST = pa.schema(
    [
        ("stage", pa.string()),
        ("index", pa.int64()),
        ("kind", pa.string()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("fields", pa.list_(_STRINGS)),
        ("cut", pa.int64()),
        ("label", pa.string()),
        ("prediction", pa.string()),
        ("loss", pa.float64()),
    ]
)
_BEFORE = {b"2": _OLDEST, b"3": _OLDEST.append(pa.field("pieces", _STRINGS))}
"""Formats that are read, too: of one picture, without sounds and turns; the oldest without tokens in words."""

_SOUND = pa.struct([("wav", pa.binary()), ("seconds", pa.float64()), ("name", pa.string())])
_TURN = pa.struct([("part", pa.string()), ("role", pa.string()), ("text", pa.string()), ("cut", pa.int64())])
_SCHEMA = pa.schema(
    [
        *(field for field in _BEFORE[b"3"] if field.name != "image"),
        ("images", pa.list_(pa.binary())),
        ("sounds", pa.list_(_SOUND)),
        ("turns", pa.list_(_TURN)),
        ("more", _STRINGS),
    ]
)


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


def _run(folder: Path) -> str:
    """The run of the folder, by the digest of its description; "" where there is none."""
    return read_manifest(folder).run if (folder / RECORD).exists() else ""


def _storable(value: Any) -> Any:
    if isinstance(value, Sound | Turn):
        return {name: _storable(part) for name, part in asdict(value).items()}
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
    _check_whole("a preview", row, may_lack=("stage", "loss"))
    fields = {name: value for name, value in row.items() if name != "image"}
    before = () if not row.get("image") else (row["image"],)
    fields["images"] = tuple(row.get("images", before))
    fields["fields"] = tuple((name, value) for name, value in row["fields"])
    fields["pieces"], fields["more"] = tuple(row.get("pieces", ())), tuple(row.get("more", ()))
    for name, kind in (("sounds", Sound), ("turns", Turn)):
        for each in row.get(name, ()):
            _check_whole(f"of a preview one of the {name}", each)
        fields[name] = tuple(kind(**each) for each in row.get(name, ()))
    return Preview(**fields)


def _check_whole(what: str, row: Mapping[str, Any], may_lack: Sequence[str] = ()) -> None:
    """Refuse a record in which something is nothing, or a list of it."""
    for name, value in row.items():
        if value is None and name not in may_lack:
            raise ValueError(f"{what} has no {name}")
        listed = cast("list[Any]", value) if isinstance(value, list) else []
        if any(each is None or (isinstance(each, list) and None in each) for each in listed):
            raise ValueError(f"{what} has none of its {name}")
