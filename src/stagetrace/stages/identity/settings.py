"""A choice's settings as plain values: what `run.json` says of a curvature, a solver or a link."""

from dataclasses import fields, is_dataclass
from typing import Any

from stagetrace.stages.identity.identity import Identity
from stagetrace.stages.identity.origin import library_of

BESIDE = ("memory", "cache")
"""Fields of the library's own choices that change no number."""


def settings_of(choice: object, identity: Identity | None = None) -> Any:
    """A choice's name and fields as plain values; what is not plain, or of the user's own class, also by a digest.

    `memory` and `cache` are left out: they decide how and where, not what, is computed.

    Example:
        >>> from stagetrace import Hessian
        >>> settings_of(Hessian(examples=10))
        {'name': 'Hessian', 'examples': 10, 'seed': 0}
    """
    if type(choice) in (bool, int, float, str, type(None)):
        return choice
    kind, identity = type(choice), identity or Identity()
    ours = library_of(kind.__module__) == "stagetrace"
    name = getattr(choice, "__qualname__", kind.__qualname__)
    if is_dataclass(choice) and not isinstance(choice, type):
        named = {f.name: getattr(choice, f.name) for f in fields(choice) if not (ours and f.name in BESIDE)}
        plain = {key: settings_of(value, identity) for key, value in named.items()}
        return {"name": name, **plain, **({} if ours else {"its": identity.of(choice)})}
    if isinstance(choice, type) and library_of(choice.__module__) == "stagetrace":
        return name
    return {"name": name, **identity.of(choice)}
