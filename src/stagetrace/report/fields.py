"""The parts of an example by name, and a value in words."""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from stagetrace.objectives.batches import LABELS
from stagetrace.report.preview import whole_characters

__all__ = ["TARGET", "describe_value", "fields_of", "label_column", "short", "without_places"]

TARGET = "target"
"""The name of the last part of a tuple."""

_FIELD = 120
_SHOWN = 8
_PLACE = re.compile(r" at 0x[0-9A-Fa-f]+")


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
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc"):
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
        return json.dumps(value, ensure_ascii=False, default=_in_short)
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


def short(text: str) -> str:
    """The beginning of a text, for a cell."""
    whole = whole_characters(text)
    return whole if len(whole) <= _FIELD else f"{whole[: _FIELD - 3]}..."


def _in_short(value: Any) -> str:
    """What JSON has no form for; without an object's place in memory, which differs from run to run."""
    return f"{len(value):,} bytes" if isinstance(value, bytes | bytearray) else without_places(str(value))


def without_places(text: str) -> str:
    """A text without places in memory, such as Python writes of objects.

    Example:
        >>> without_places("<PIL.Image size=8x8 at 0x7F3A>")
        '<PIL.Image size=8x8>'
    """
    return _PLACE.sub("", text)
