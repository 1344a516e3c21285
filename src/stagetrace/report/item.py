"""One example of any data set as a preview: an image, a text or a short table."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, final

import numpy as np
import torch
from torch import Tensor

from stagetrace.objectives.batches import LABELS
from stagetrace.report import picture
from stagetrace.report.previews import Preview, whole_characters

LONGEST = 2_000
"""Characters of a text that are kept."""

TARGET = "target"
"""The name of the last part of a tuple."""

_FIELD = 120
_FIELDS = 12
_SHOWN = 8
_IDS = "input_ids"


@final
@dataclass(frozen=True, eq=False)
class Reader:
    """Reads a data set's items for people.

    data: the data set, of rows as they are before a model's features are made of them, where it still has those.
    names: class names by the name of the column that has them.
    decode: token ids -> text; None where there is no tokenizer.
    classes: class names for labels whose column has none of its own.
    """

    data: Any
    names: Mapping[str, Sequence[str]]
    decode: Callable[[list[int]], str] | None
    classes: Sequence[str] = ()

    @staticmethod
    def of(data: Any, classes: Sequence[str] = ()) -> "Reader":
        """The reader of a data set; rows, names and tokenizer are looked for on it, nothing of them is needed."""
        reader = getattr(data, "reader", None)
        tokenizer = getattr(data, "tokenizer", None) or getattr(reader, "tokenizer", None)
        decode: Callable[[list[int]], str] | None = getattr(tokenizer, "decode", None)
        rows = getattr(data, "rows", data)
        rows = rows if hasattr(rows, "__getitem__") and hasattr(rows, "__len__") and len(rows) == len(data) else data
        features = getattr(rows, "features", None)
        columns = {str(name): getattr(feature, "names", None) for name, feature in _items(features)}
        named = {TARGET: getattr(data, "classes", None), **columns}  # `classes` as torchvision's data sets have it
        named = {column: tuple(map(str, names)) for column, names in named.items() if names}
        return Reader(rows, named, decode if callable(decode) else None, classes)

    def preview(self, stage: str | None, index: int) -> Preview:
        """The preview of example `index`. An example that cannot be read is a table that says so."""
        try:
            item = self.data[index]
            return self._of_item(Preview(stage, index, "table"), item)
        except Exception as cause:
            return Preview(
                stage, index, "table", fields=(("not readable", _short(f"{type(cause).__name__}: {cause}")),)
            )

    def _of_item(self, empty: Preview, item: Any) -> Preview:
        fields = fields_of(item)
        column = label_column(fields)
        label = "" if column is None else self._label(column, fields.pop(column))
        shown = replace(empty, label=label)
        images = [value for value in fields.values() if picture.is_picture(value)]
        if images and picture.available():
            return replace(shown, kind="image", image=picture.png(images[0]))
        text = self._text(fields)
        if text is not None:
            whole = whole_characters(text)
            return replace(shown, kind="text", text=whole[:LONGEST], cut=max(0, len(whole) - LONGEST))
        pairs = [(_short(name), _short(describe_value(value))) for name, value in fields.items()]
        more = [("...", f"{len(pairs) - _FIELDS} more fields")] if len(pairs) > _FIELDS else []
        return replace(shown, fields=(*pairs[:_FIELDS], *more))

    def _text(self, fields: Mapping[str, Any]) -> str | None:
        """The item's text: its column `text`, its only text, all its texts by name, or its tokens decoded."""
        texts = {name: value for name, value in fields.items() if isinstance(value, str)}
        if "text" in texts or len(texts) == 1:
            return texts.get("text", next(iter(texts.values())))
        if texts:
            return "\n".join(f"{name}: {value}" for name, value in texts.items())
        ids = fields.get(_IDS, next(iter(fields.values()), None) if len(fields) == 1 else None)
        if self.decode is None or not _are_ids(ids):
            return None
        return self.decode([int(token) for token in ids])

    def _label(self, column: str, label: Any) -> str:
        value: Any = label.tolist() if isinstance(label, Tensor | np.ndarray | np.generic) else label
        names = self.names.get(column) or self.classes
        if isinstance(value, float) and value in (0.0, 1.0) and len(names) == 2:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(names):
            return _short(names[value])
        if isinstance(value, list) and names and len(value) == len(names) and all(mark in (0, 1) for mark in value):
            return _short(", ".join(name for name, mark in zip(names, value, strict=True) if mark) or "none")
        # labels of tokens are as long as the text, and say nothing to people
        return "" if isinstance(value, list | tuple | Mapping | None) else _short(describe_value(value))


def label_column(fields: Mapping[str, Any]) -> str | None:
    """The name under which an item has its label, if it has one."""
    return next((name for name in LABELS if name in fields), None)


def describe_value(value: Any) -> str:
    """A value in a line: a short tensor's numbers, else its shape and its first ones.

    Example:
        >>> describe_value(torch.tensor([1.0, -0.25]))
        '1, -0.25'
        >>> describe_value(torch.zeros(3, 50))
        'float32 [3, 50]: 0, 0, 0, 0, 0, 0, 0, 0, ...'
    """
    if isinstance(value, Tensor | np.ndarray):
        array = torch.as_tensor(value).detach().cpu()
        flat = cast("list[float]", array.flatten()[: _SHOWN + 1].tolist())
        numbers = ", ".join(f"{number:.4g}" for number in flat[:_SHOWN])
        if len(flat) <= _SHOWN and array.ndim <= 1:
            return numbers
        return f"{str(array.dtype).removeprefix('torch.')} {list(array.shape)}: {numbers}, ..."
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str | int | type(None)):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        return type(value).__name__


def fields_of(item: Any) -> dict[str, Any]:
    """The item's parts by name; the last part of a tuple is its target."""
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items()}
    if isinstance(item, tuple | list) and len(item) >= 2 and not all(isinstance(part, int | float) for part in item):
        *inputs, target = item
        names = ["input"] if len(inputs) == 1 else [f"input {place}" for place in range(len(inputs))]
        return {**dict(zip(names, inputs, strict=True)), TARGET: target}
    if isinstance(item, tuple) and len(item) == 2:
        return {"input": item[0], TARGET: item[1]}
    return {"input": item}


def _items(mapping: Any) -> list[tuple[Any, Any]]:
    return list(mapping.items()) if isinstance(mapping, Mapping) else []


def _are_ids(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 1 and not value.is_floating_point()
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(part, int) for part in value)


def _short(text: str) -> str:
    whole = whole_characters(text)
    return whole if len(whole) <= _FIELD else f"{whole[: _FIELD - 3]}..."
