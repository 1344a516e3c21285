"""What an object holds, without asking it."""

from typing import Any


def attributes_of(value: object) -> dict[str, Any]:
    """What stands in `__dict__` and `__slots__`, by name; no property and no method of the object is called."""
    try:
        held = dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        held = {}
    for base in type(value).__mro__:
        for name, member in base.__dict__.items():
            if type(member).__name__ == "member_descriptor" and name not in ("__dict__", "__weakref__"):
                try:
                    held[name] = member.__get__(value, type(value))
                except AttributeError:
                    continue
    return held
