"""Values and dataclasses as JSON holds them, and back: the one convention for every JSON file that stagetrace writes.

A number that is not finite has no form in JSON: NaN (unknown) is null, an infinity is the string "inf" or "-inf".
"""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from stagetrace.errors import refuse

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

T = TypeVar("T")

_SHOWN = 8
_LONGEST = 60

_DEEPEST = 50
_DEEP = f"its values are nested more than {_DEEPEST} deep"


def to_json(value: object, where: str = "it", omit: Collection[str] = ()) -> Any:
    """`value` as JSON holds it: a dataclass by its fields, an `Enum` by its name, a tuple as a list.

    where: what the value is, for the message.
    omit: fields of the dataclass to leave out, because they are kept elsewhere.

    Raises:
        DescriptionError: something else is in it; the message says where.

    Example:
        >>> to_json({"sizes": (1, 2), "residual": float("inf"), "slope": float("nan")})
        {'sizes': [1, 2], 'residual': 'inf', 'slope': None}
    """
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in fields(value) if field.name not in omit}
        return to_json(named, where)
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        return [to_json(item, f"{where}.{place}") for place, item in enumerate(items)]
    if not isinstance(value, Mapping):
        refuse(f"{where}: JSON holds numbers, strings, lists and dicts, got a {type(value).__name__}")
    entries = cast("Mapping[object, object]", value)
    for key in entries:
        if not isinstance(key, str):
            refuse(f"{where}: a key in JSON must be a string, got {key!r}")
    return {str(key): to_json(item, f"{where}.{key}") for key, item in entries.items()}


def from_json(kind: type[T], content: object, **given: object) -> T:
    """The dataclass that `to_json` made `content` of; every field is of its type.

    given: values of fields that `content` does not hold.

    Raises:
        ValueError: a field without a default is missing, or one is unknown or of another type; the message names it.

    Example:
        >>> from stagetrace.solvers.system import Spectrum
        >>> from_json(Spectrum, {"ritz": [1, "inf"]})
        Spectrum(ritz=(1.0, inf))
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds {_kind(content)} where a {kind.__name__} belongs")
    types = get_type_hints(kind, localns={"JSON": object, "Mapping": Mapping, "Sequence": Sequence})
    found = cast("dict[str, object]", content)
    wanted = {field.name: field for field in fields(cast("Any", kind)) if field.name not in given}
    for name, field in wanted.items():
        if name not in found and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"it has no {name!r}")
    for name in found:
        if name not in wanted:
            raise ValueError(f"it has a {name!r}, which is unknown")
    return kind(**{name: _value(types[name], value, name) for name, value in found.items()}, **given)


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


def json_text(value: object, where: str = "it", *, lists_in_a_line: bool = False) -> str:
    """The content of a JSON file: `to_json(value)`, indented, with a line's end after it.

    lists_in_a_line: each list of numbers on one line, so that hundreds of them stay readable.
    """
    text = json.dumps(to_json(value, where), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if lists_in_a_line:
        text = re.sub(r"\[\n[^\[\]{}\"]*\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
    return text


def differences(old: JSON, new: JSON) -> tuple[str, ...]:
    """Each leaf in which two JSON values differ, as `path.to.field: OLD -> NEW`; empty if they are equal.

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


def format_differences(lines: Sequence[str]) -> str:
    """The lines, indented, at most eight of them and then a count; long ones are cut in the middle of a value."""
    rest = len(lines) - _SHOWN
    shown = [f"  {_cut(line)}" for line in lines[:_SHOWN]]
    return "\n".join([*shown, f"  ... and {rest} more"] if rest > 0 else shown)


def leaves_named(value: JSON, key: str, path: str = "") -> list[tuple[str, JSON]]:
    """Every value under a key of that name, at any depth, with the path to where it stands.

    Example:
        >>> leaves_named({"stages": {"fit": {"unidentified": ["x"]}}}, "unidentified")
        [('stages.fit', ['x'])]
    """
    if not isinstance(value, Mapping):
        return []
    found = [(path, value[key])] if key in value else []
    for name, entry in value.items():
        found += leaves_named(entry, key, f"{path}.{name}" if path else name)
    return found


def _value(kind: Any, value: Any, name: str) -> Any:
    """One value of a dataclass's field, as its annotation says."""
    origin: Any = get_origin(kind)
    inner = get_args(kind)
    if origin in (Union, UnionType):
        (some,) = (each for each in inner if each is not NoneType)
        return None if value is None else _value(some, value, name)
    if kind is float:
        return _number(value, name)
    if origin is Literal and value in inner:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], item, name) for item in cast("list[object]", value))
    if isinstance(value, dict) and origin is Mapping:
        entries = cast("dict[str, object]", value)
        typed = isinstance(inner[1], type)  # a mapping to any JSON is taken as it is
        return {key: _value(inner[1], each, name) for key, each in entries.items()} if typed else entries
    if isinstance(kind, type) and is_dataclass(kind):
        return from_json(kind, value)
    if isinstance(kind, type) and issubclass(kind, Enum) and value in list(kind.__members__):
        return kind[str(value)]
    if kind in (bool, int, str) and type(value) is kind:
        return value
    raise ValueError(f"its {name!r} is {_kind(value)}")


def _number(value: object, name: str) -> float:
    if value is None:
        return math.nan
    if value in ("inf", "-inf") or (isinstance(value, int | float) and not isinstance(value, bool)):
        return float(cast("str | float", value))
    raise ValueError(f"its {name!r} is {_kind(value)}, not a number")


def _kind(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


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
