"""The grammar of `--solve` and `--retrain`: `[STAGE=]NAME[:KEY=VALUE,...]`, or settings alone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, final

from stagetrace.errors import refuse
from stagetrace.stages.chain import Chain

Read = Callable[[str, str], Any]
"""Reads a value: (what is typed, how messages name it) -> the value."""


@final
@dataclass(frozen=True)
class Grammar:
    """What an option takes: names of methods, and settings by key.

    option: e.g. "--solve". example: a whole value, for messages. fields: of a setting, by key, where the names differ.
    """

    option: str
    names: Sequence[str]
    keys: Mapping[str, Read]
    example: str
    fields: Mapping[str, str] = field(default_factory=dict[str, str])

    def applies(self, setting: Any, key: str) -> bool:
        """Whether the setting, or what it wraps, has the field of that key."""
        return applies(setting, self.fields.get(key, key))

    def change(self, setting: Any, key: str, value: object) -> Any:
        """The setting with the field of that key changed.

        Raises:
            DescriptionError: there is no such field.
        """
        if not self.applies(setting, key):
            able = ", ".join(each for each in self.keys if self.applies(setting, each)) or "no settings"
            name = type(getattr(setting, "optimizer", setting) if _has(setting, "optimizer") else setting).__name__
            refuse(f"{self.option}: {key} does not apply to {name}, which takes {able}")
        return with_field(setting, self.fields.get(key, key), value)


@final
@dataclass
class Spec:
    """What was typed for one stage.

    name: of the method, if one was. settings: `{key: value}`. own: the keys that were typed for this stage by its name.
    """

    name: str | None = None
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    own: set[str] = field(default_factory=set[str])


def by_stage(chain: Chain, typed: Sequence[str], grammar: Grammar) -> dict[str, Spec]:
    """What was typed for each stage: later values win, and those that name the stage win over those that name none.

    Raises:
        DescriptionError: a stage, name, key or value that there is not.
    """
    found = {stage: Spec() for stage in chain.names}
    parsed = [_parsed(chain, word, grammar) for word in typed]
    for named in (False, True):
        for stage, name, settings in parsed:
            for spec in (found[s] for s in chain.names if named == (stage is not None) and stage in (None, s)):
                spec.name = name or spec.name
                spec.settings |= settings
                spec.own |= settings.keys() if named else set()
    return found


def _parsed(chain: Chain, word: str, grammar: Grammar) -> tuple[str | None, str | None, dict[str, Any]]:
    """Stage, name and settings of one value, None where there is none."""
    stage, method = None, word
    head, is_split, tail = word.partition("=")
    if is_split and head in chain.names:
        stage, method = head, tail
    elif is_split and ":" not in head and head not in grammar.keys:
        refuse(
            f"{grammar.option}: '{head}' is neither a stage ({', '.join(chain.names)}) nor a setting "
            f"({', '.join(grammar.keys)}); e.g. {grammar.example}"
        )
    name, has_settings, settings = method.partition(":")
    if not has_settings and "=" in method:
        name, settings = "", method
    if name and name not in grammar.names:
        refuse(f"{grammar.option} must be one of {', '.join(grammar.names)}, got '{name}'; e.g. {grammar.example}")
    if not name and not settings:
        refuse(f"{grammar.option} got '{word}', which has neither a method nor a setting; e.g. {grammar.example}")
    return stage, name or None, dict(_settings(settings, grammar) if settings or has_settings else ())


def _settings(typed: str, grammar: Grammar) -> Iterator[tuple[str, Any]]:
    seen = set[str]()
    for pair in typed.split(","):
        key, is_pair, value = pair.partition("=")
        if not is_pair or key not in grammar.keys:
            refuse(
                f"{grammar.option}: '{pair}' is no setting; these are KEY=VALUE, separated by commas, with the keys "
                f"{', '.join(grammar.keys)}; e.g. {grammar.example}"
            )
        if key in seen:
            refuse(f"{grammar.option}: {key} is given twice in '{typed}'; give it once")
        seen.add(key)
        yield key, grammar.keys[key](value, f"{grammar.option}: {key}")


def whole(word: str, where: str) -> int:
    """A whole number."""
    return _read(int, word, f"{where} needs a whole number")


def whole_from(least: int) -> Read:
    """A whole number of at least `least`."""

    def read(word: str, where: str) -> int:
        found = whole(word, where)
        if found < least:
            refuse(f"{where} needs a whole number of at least {least}, got '{word}'")
        return found

    return read


def real(word: str, where: str) -> float:
    """A number."""
    return _read(float, word, f"{where} needs a number")


def positive(word: str, where: str) -> float:
    """A number above 0."""
    found = real(word, where)
    if not 0 < found < math.inf:
        refuse(f"{where} needs a number above 0, got '{word}'")
    return found


def damping(word: str, where: str) -> float | str:
    """A number, or auto."""
    return word if word == "auto" else _read(float, word, f"{where} needs a number or auto")


def count(word: str, where: str) -> int | str | None:
    """A whole number, auto, or None for all."""
    if word in ("all", "auto"):
        return None if word == "all" else "auto"
    return _read(int, word, f"{where} needs a whole number, all or auto")


def one_of(names: Sequence[str]) -> Read:
    """One of some names."""

    def read(word: str, where: str) -> str:
        if word not in names:
            refuse(f"{where} must be one of {', '.join(names)}, got '{word}'")
        return word

    return read


def spaced(names: Sequence[str]) -> Read:
    """One of some names of several words, typed with hyphens or as it is."""
    typed = [name.replace(" ", "-") for name in names]

    def read(word: str, where: str) -> str:
        found: str = one_of(typed)(word.replace(" ", "-"), where)
        return names[typed.index(found)]

    return read


def _read(kind: Callable[[str], Any], word: str, needs: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        refuse(f"{needs}, got '{word}'")


# Settings of what was chosen


def applies(setting: Any, field: str) -> bool:
    """Whether the setting, or what it wraps, has such a field."""
    return _has(setting, field) or _wrapper(setting, field) is not None


def with_field(setting: Any, field: str, value: object) -> Any:
    """The setting with one field changed that it has, or that what it wraps has."""
    if _has(setting, field):
        return replace(setting, **{field: value})
    wrapper = _wrapper(setting, field)
    assert wrapper is not None, f"{setting} has no {field}"
    return replace(setting, **{wrapper: replace(getattr(setting, wrapper), **{field: value})})


def _has(setting: Any, field: str) -> bool:
    return is_dataclass(setting) and field in {f.name for f in fields(setting)}


def _wrapper(setting: Any, field: str) -> str | None:
    """The field that holds what has the field."""
    held = (name for name in ("inner", "optimizer") if _has(setting, name) and _has(getattr(setting, name), field))
    return next(held, None)
