"""What run.json can hold, and how two descriptions differ."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from stagetrace.errors import refuse

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_SHOWN = 8
_DEEPEST = 50
_DEEP = f"its values are nested more than {_DEEPEST} deep"
_LONGEST = 60


def plain(value: object, where: str) -> JSON:
    """`value` as JSON holds it: dicts, lists, strings, booleans and finite numbers.

    A number that is not finite becomes the string "inf", "-inf" or "nan": JSON has no other way to say it.

    Raises:
        DescriptionError: something else is in it; the message says where.

    Example:
        >>> plain({"sizes": (1, 2), "residual": float("inf")}, "statistics")
        {'sizes': [1, 2], 'residual': 'inf'}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        return [plain(item, f"{where}.{place}") for place, item in enumerate(items)]
    if not isinstance(value, Mapping):
        refuse(f"{where}: run.json holds numbers, strings, lists and dicts, got a {type(value).__name__}")
    entries = cast("Mapping[object, object]", value)
    for key in entries:
        if not isinstance(key, str):
            refuse(f"{where}: a key of run.json must be a string, got {key!r}")
    return {str(key): plain(item, f"{where}.{key}") for key, item in entries.items()}


def entry(record: Mapping[str, JSON], key: str) -> Mapping[str, JSON]:
    """The object under `key`.

    Raises:
        ValueError: there is none.
    """
    value = record.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(f"its {key!r} is not an object")
    return value


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or nested deeper than anything that stagetrace writes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(_DEEP) from None
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
    if level:
        raise ValueError(_DEEP)
    return content


def differences(old: JSON, new: JSON) -> tuple[str, ...]:
    """Each leaf in which two plain values differ, as `path.to.field: OLD -> NEW`; empty if they are equal.

    Example:
        >>> differences({"query": {"reduction": "mean", "n": 3}}, {"query": {"reduction": "sum", "n": 3}})
        ('query.reduction: "mean" -> "sum"',)
    """
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    return tuple(
        f"{path}: {before.get(path, '(absent)')} -> {after.get(path, '(absent)')}"
        for path in {**before, **after}
        if before.get(path) != after.get(path)
    )


def listed(lines: Sequence[str]) -> str:
    """The lines, indented, at most eight of them and then a count; long ones are cut in the middle of a value."""
    rest = len(lines) - _SHOWN
    shown = [f"  {_cut(line)}" for line in lines[:_SHOWN]]
    return "\n".join([*shown, f"  ... and {rest} more"] if rest > 0 else shown)


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _cut(line: str) -> str:
    path, _, change = line.partition(": ")
    sides = (side if len(side) <= _LONGEST else side[: _LONGEST - 3] + "..." for side in change.split(" -> ", 1))
    return f"{path}: {' -> '.join(sides)}"


def _leaves(value: JSON, path: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        items = list(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        items = [(str(place), item) for place, item in enumerate(value)]
    else:
        return [(path, json.dumps(value, ensure_ascii=False))]
    return [leaf for key, item in items for leaf in _leaves(item, f"{path}.{key}" if path else key)]
