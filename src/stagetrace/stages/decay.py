"""The L2 term of a training loss: one coefficient, or one by patterns of the parameters' names."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from numbers import Real
from typing import cast

from stagetrace.errors import refuse

__all__ = ["Decay", "checked_decay", "decays_of"]

Decay = float | Mapping[str, float]
"""A coefficient for all trained parameters, or `{pattern of names: coefficient}`."""

REST = "*"
"""The pattern of what no other one matches."""

EXAMPLE = "{'*bias': 0.0, '*norm*': 0.0, '*': 0.01}"

SHOWN = 3


def checked_decay(given: object, names: Iterable[str], where: str) -> Decay:
    """A weight decay as it is, a mapping as one of its own.

    names: of all the model's parameters.

    Raises:
        DescriptionError: no number of at least 0; a pattern that matches no parameter.
    """
    if not isinstance(given, Mapping):
        if not _is_decay(given):
            refuse(f"{where}: weight_decay must be a number of at least 0, or a mapping by names, got {given!r}")
        return cast("float", given)
    table, known = dict(cast("Mapping[object, object]", given)), list(names)
    if not table:
        refuse(f"{where}: weight_decay is an empty mapping; give a number, or patterns such as {EXAMPLE}")
    for pattern, value in table.items():
        if not isinstance(pattern, str):
            refuse(f"{where}: weight_decay has the key {pattern!r}; keys are patterns of names, such as {EXAMPLE}")
        if not _is_decay(value):
            refuse(f"{where}: weight_decay[{pattern!r}] must be a number of at least 0, got {value!r}")
        if pattern != REST and not pattern.strip("*"):
            refuse(f"{where}: weight_decay has the key {pattern!r}; the rest is written '{REST}'")
        if not any(fnmatchcase(name, pattern) for name in known):
            some = ", ".join(map(repr, known[:SHOWN])) + (", ..." if len(known) > SHOWN else "")
            refuse(f"{where}: weight_decay: no parameter is called like {pattern!r}; the model has {some}")
    return cast("dict[str, float]", table)


def decays_of(decay: Decay, trained: Iterable[str], where: str) -> dict[str, float]:
    """The coefficient of each trained parameter.

    One that several patterns match has the value that they agree on; `*` alone is for what no other pattern matches.

    Raises:
        DescriptionError: a parameter that no pattern matches, or that two match with different values.
    """
    if not isinstance(decay, Mapping):
        return {name: float(decay) for name in trained}
    found, missing = dict[str, float](), list[str]()
    for name in trained:
        matching = [pattern for pattern in decay if pattern != REST and fnmatchcase(name, pattern)]
        matching = matching or [pattern for pattern in decay if pattern == REST]
        values = {float(decay[pattern]) for pattern in matching}
        if len(values) > 1:
            said = " and ".join(f"{pattern!r} ({decay[pattern]:g})" for pattern in matching)
            refuse(
                f"{where}: weight_decay: parameter '{name}' is matched by {said}; let one of them match it, such as "
                f"{EXAMPLE}, where '{REST}' is for what no other pattern matches"
            )
        if values:
            found[name] = values.pop()
        else:
            missing.append(name)
    if missing:
        some = ", ".join(f"'{name}'" for name in missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        refuse(
            f"{where}: weight_decay: no pattern matches the trained parameter{'s' if len(missing) > 1 else ''} {some}; "
            f"add it, or '{REST}' for all that no other pattern matches, such as {EXAMPLE}"
        )
    return found


def _is_decay(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf
