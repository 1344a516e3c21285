"""One example of any data set as a preview: pictures, sounds, a conversation, a text or a short table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from torch import Tensor

from stagetrace.hf.texts import BESIDE
from stagetrace.report.conversation import conversation_of, held_in
from stagetrace.report.fields import TARGET, describe_value, fields_of, label_column, short
from stagetrace.report.media import Media, left_out, why
from stagetrace.report.preview import Kind, Preview, whole_characters
from stagetrace.report.sound import RATES

LONGEST = 2_000
"""Characters of a text, or of a turn, that are kept."""

_FIELDS = 12
_IDS = "input_ids"


@final
@dataclass(frozen=True, eq=False)
class Reader:
    """Reads a data set's items for people.

    data: the data set, of rows as they are before a model's features are made of them, where it still has those.
    names: class names by the name of the column that has them.
    decode: token ids -> text; None where there is no tokenizer.
    classes: class names for labels whose column has none of its own.
    rate: of waveforms whose rows do not say it, in Hz; None where it is not known.
    """

    data: Any
    names: Mapping[str, Sequence[str]]
    decode: Callable[[list[int]], str] | None
    classes: Sequence[str] = ()
    rate: float | None = None

    @staticmethod
    def of(data: Any, classes: Sequence[str] = ()) -> "Reader":
        """The reader of a data set; rows, names and processors are looked for on it, nothing of them is needed."""
        reader = getattr(data, "reader", None)
        tokenizer = getattr(data, "tokenizer", None) or getattr(reader, "tokenizer", None)
        decode: Callable[[list[int]], str] | None = getattr(tokenizer, "decode", None)
        rows = _rows(data)
        features = getattr(rows, "features", None)
        columns = {str(name): getattr(feature, "names", None) for name, feature in _items(features)}
        named = {TARGET: getattr(data, "classes", None), **columns}  # `classes` as torchvision's data sets have it
        named = {column: tuple(map(str, names)) for column, names in named.items() if names}
        rate = _rate(data, reader, getattr(reader, "media", None), tokenizer)
        return Reader(rows, named, decode if callable(decode) else None, classes, rate)

    def preview(self, stage: str | None, index: int) -> Preview:
        """The preview of example `index`. An example that cannot be read is a table that says so."""
        try:
            item = self.data[index]
            return self._of_item(Preview(stage, index, "table"), item)
        except Exception as cause:
            return Preview(stage, index, "table", fields=(("not readable", why(cause)),))

    def _of_item(self, empty: Preview, item: Any) -> Preview:
        fields = fields_of(item)
        column = label_column(fields)
        label = "" if column is None else self._label(column, fields.pop(column))
        turns, more = conversation_of(fields, LONGEST)
        seen = Media.of(fields, held_in(fields) if turns else (), self._rate_of(fields))
        found: dict[str, Any] = {"label": label, "images": seen.images, "sounds": seen.sounds, "fields": seen.problems}
        found["more"] = tuple(filter(None, (*seen.more, left_out(more, "turn"))))
        rest = {name: value for name, value in fields.items() if name not in seen.columns}
        if turns:
            return replace(empty, kind="conversation", turns=tuple(turns), **found)
        kind: Kind = "audio" if seen.sounds else "image"
        text = self._text(rest, told=bool(seen.columns))
        if text is not None:
            whole = whole_characters(text)
            kind = kind if seen.sounds or seen.images else "text"
            return replace(empty, kind=kind, text=whole[:LONGEST], cut=max(0, len(whole) - LONGEST), **found)
        if seen.sounds or seen.images:
            return replace(empty, kind=kind, **found)
        pairs = [*seen.problems, *((short(name), short(describe_value(value))) for name, value in rest.items())]
        less = [("...", f"{len(pairs) - _FIELDS} more fields")] if len(pairs) > _FIELDS else []
        return replace(empty, **{**found, "fields": (*pairs[:_FIELDS], *less)})

    def _text(self, fields: Mapping[str, Any], *, told: bool) -> str | None:
        """The item's text: its column `text`, its only text, all its texts by name, or its tokens decoded.

        told: beside pictures and sounds, where names of files and the like are no text.
        """
        texts = {name: value for name, value in fields.items() if isinstance(value, str)}
        if told:
            texts = {name: value for name, value in texts.items() if name not in BESIDE and not name.endswith("_id")}
        if "text" in texts or len(texts) == 1:
            return texts.get("text", next(iter(texts.values())))
        if texts:
            return "\n".join(f"{name}: {value}" for name, value in texts.items())
        alone = len(fields) == 1 and not told
        ids = fields.get(_IDS, next(iter(fields.values())) if alone else None)
        if self.decode is None or not _are_ids(ids):
            return None
        return self.decode([int(token) for token in ids])

    def _rate_of(self, fields: Mapping[str, Any]) -> float | None:
        given = next((fields[name] for name in RATES if isinstance(fields.get(name), int | float)), None)
        return self.rate if given is None else float(given)

    def _label(self, column: str, label: Any) -> str:
        value: Any = label.tolist() if isinstance(label, Tensor | np.ndarray | np.generic) else label
        names = self.names.get(column) or self.classes
        if isinstance(value, float) and value in (0.0, 1.0) and len(names) == 2:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
            return short(names[value])
        if isinstance(value, list) and names and len(value) == len(names) and all(mark in (0, 1) for mark in value):
            return short(", ".join(name for name, mark in zip(names, value, strict=True) if mark) or "none")
        # labels of tokens are as long as the text, and say nothing to people
        return "" if isinstance(value, list | tuple | Mapping | None) else short(describe_value(value))


def _rows(data: Any) -> Any:
    """What a data set's examples are made from, as far back as each is made of one row."""
    rows = data
    for _ in range(4):
        inner = getattr(rows, "rows", None)
        if not (hasattr(inner, "__getitem__") and hasattr(inner, "__len__") and len(inner) == len(data)):  # pyright: ignore[reportArgumentType]
            break
        rows = inner
    return rows


def _rate(*holders: Any) -> float | None:
    """The rate that a processor of sounds expects, wherever one is."""
    names = ("processor", "feature_extractor")
    for holder in holders:
        inner = [holder, *(getattr(holder, name, None) for name in names)]
        inner += [getattr(each, "feature_extractor", None) for each in inner]
        for each in inner:
            rate = getattr(each, "sampling_rate", None)
            if isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0:
                return float(rate)
    return None


def _items(mapping: Any) -> list[tuple[Any, Any]]:
    return list(mapping.items()) if isinstance(mapping, Mapping) else []


def _are_ids(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 1 and not value.is_floating_point()
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(part, int) for part in value)
