"""Single examples before they are put together: what PyTorch's own collation would silently do to them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, final

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import default_collate_fn_map  # where users register classes of their own

_NUMBERS = (bool, int, float, complex, np.generic)
_OR = "torch.utils.data.default_collate"


class UnfitRowError(ValueError):
    """An example that cannot be put together with others, or could mean several things."""


@final
class PlainCollation:
    """PyTorch's own collation, but rows that it would turn round or cut are refused.

    Raises:
        UnfitRowError: the message says what is wrong with a row and what to type.
    """

    def __call__(self, rows: Sequence[Any]) -> Any:
        for row in rows:
            message = complaint(row) or misfit(rows[0], row)
            if message:
                raise UnfitRowError(message)
        return default_collate(list(rows))


def complaint(row: object) -> str | None:
    """What is wrong with a single example, or None.

    Refused are a list or tuple of numbers inside a row, which PyTorch turns into a list of tensors `[batch]`, one for
    each position, and what cannot be in a tensor.

    Example:
        >>> complaint({"input_ids": [101, 7592], "label": 0}).split(";")[0]
        "'input_ids' is a list of 2 numbers, which PyTorch's collation turns into 2 columns, one for each position"
    """
    if isinstance(row, Mapping):
        entries = cast("Mapping[object, object]", row)
        return next((message for key, value in entries.items() if (message := _within(repr(key), value))), None)
    if isinstance(row, (list, tuple)):
        items = cast("Sequence[object]", row)
        if len(items) > 2 and isinstance(row, list) and all(isinstance(item, _NUMBERS) for item in items):
            return _turned("it", items)
        return next(
            (message for place, value in enumerate(items) if (message := _within(f"item {place}", value))), None
        )
    return _within("it", row)


def misfit(first: object, row: object) -> str | None:
    """How an example differs in form from the first of its batch, or None; shapes are left to the stacking."""
    if isinstance(first, Mapping) and isinstance(row, Mapping):
        ours, theirs = cast("Mapping[object, object]", row), cast("Mapping[object, object]", first)
        if ours.keys() != theirs.keys():
            odd = ", ".join(sorted(repr(key) for key in ours.keys() ^ theirs.keys()))
            return f"it has the keys {list(ours)}, another example of its batch {list(theirs)} (not in both: {odd})"
        return None
    one, other = isinstance(first, (list, tuple)), isinstance(row, (list, tuple))
    if isinstance(first, Mapping) or isinstance(row, Mapping) or one != other:
        return f"it is a {type(row).__name__}, another example of its batch a {type(first).__name__}"
    if one and other and len(cast("Sequence[object]", first)) != len(cast("Sequence[object]", row)):
        lengths = len(cast("Sequence[object]", row)), len(cast("Sequence[object]", first))
        return f"it has {lengths[0]} items, another example of its batch {lengths[1]}"
    return None


def unstackable(first: object, row: object) -> str | None:
    """Which tensors of two examples have different shapes, or None."""
    ours, theirs = _shapes(row, ""), _shapes(first, "")
    for name, shape in ours.items():
        if name in theirs and theirs[name] != shape:
            return f"{name or 'it'} has shape {list(shape)}, in another example of its batch {list(theirs[name])}"
    return None


def has_text(row: object) -> bool:
    """Whether a row is a dict with texts in it."""
    return isinstance(row, Mapping) and any(isinstance(value, str) for value in row.values())  # pyright: ignore[reportUnknownVariableType]


def name_of(collate: Callable[..., Any]) -> str:
    """A collation in a word."""
    return getattr(collate, "__qualname__", type(collate).__qualname__)


def _within(name: str, value: object) -> str | None:
    if isinstance(value, (Tensor, np.ndarray, np.generic, str, bytes, bool, int, float)):
        if isinstance(value, np.ndarray) and value.dtype.kind in "OUSV":
            return f"{name} is an array of {value.dtype}, which no tensor holds; give numbers, or collate="
        return None
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        return next((message for key, item in entries.items() if (message := _within(f"{name}[{key!r}]", item))), None)
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        if not items:
            return f"{name} is an empty {type(value).__name__}, which no tensor holds; give a tensor, or collate="
        if all(_is_one_number(item) for item in items):
            return _turned(name, items)
        return next(
            (message for place, item in enumerate(items) if (message := _within(f"{name}[{place}]", item))), None
        )
    if value is None:
        return f"{name} is None, which no tensor holds; leave it out of every row, or give collate="
    kind = type(value)
    if isinstance(value, tuple(default_collate_fn_map)):
        return None
    if any(base.__module__ == "PIL.Image" for base in kind.__mro__):
        return f"{name} is a picture ({kind.__name__}); make it a tensor in the data set, or give collate="
    return f"{name} is a {kind.__name__}, which PyTorch's collation cannot put together; give collate="


def _is_one_number(item: object) -> bool:
    return isinstance(item, (*_NUMBERS, str)) or (isinstance(item, Tensor) and item.ndim == 0)


def _turned(name: str, items: Sequence[object]) -> str:
    kind, count = type(items).__name__, len(items)
    what = "texts" if isinstance(items[0], str) else "numbers"
    return (
        f"{name} is a {kind} of {count} {what}, which PyTorch's collation turns into {count} columns, one for each "
        f"position; give a tensor, torch.tensor(...) (datasets: data.with_format('torch')), or collate=, where "
        f"collate={_OR} takes the {count} columns as they come"
    )


def _shapes(value: object, name: str) -> dict[str, tuple[int, ...]]:
    if isinstance(value, (Tensor, np.ndarray)):
        return {name: tuple(value.shape)}
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        return {
            k: s
            for key, item in entries.items()
            for k, s in _shapes(item, f"{name}[{key!r}]" if name else repr(key)).items()
        }
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        if items and all(isinstance(item, _NUMBERS) for item in items):
            return {name: (len(items),)}
        return {
            k: s
            for place, item in enumerate(items)
            for k, s in _shapes(item, f"{name}[{place}]" if name else f"item {place}").items()
        }
    return {}
