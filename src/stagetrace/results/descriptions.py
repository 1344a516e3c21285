"""Whether two descriptions are those of the same run, and in what they differ."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from stagetrace.errors import ResultsError
from stagetrace.results.jsonable import JSON
from stagetrace.stages.fingerprint import NOT_TAKEN

_SHOWN = 8
_LONGEST = 60


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


def refuse_uncertain(folder: Path, stored: Mapping[str, JSON], wanted: Mapping[str, JSON]) -> None:
    """Refuse to go on with a run that may be another one.

    Raises:
        ResultsError: something of this run cannot be identified, or the folder's run was not fingerprinted like it.
    """
    unidentified = leaves_named(wanted, "unidentified")
    if unidentified:
        path, names = unidentified[0]
        first, *more = names if isinstance(names, list) else [str(names)]
        more = len(more) + len(unidentified) - 1
        beside = f" (nor can {more} more)" if more else ""
        raise ResultsError(
            f"{folder} already holds a run, and this one cannot be compared with it: {path} refers to {first}, which "
            f"cannot be identified{beside}; choose another folder (--out), or give its class a __getstate__ that "
            "returns what a score depends on"
        )
    if stored.get("fingerprints") != wanted.get("fingerprints"):
        raise ResultsError(
            f"{folder} holds a run of an older stagetrace, whose record does not say enough to be compared with this "
            "one; it can be read (Trace.load, stagetrace report), but to compute choose another folder (--out)"
        )
    untold = [path for path, value in leaves_named(stored, "sha256") if value == NOT_TAKEN]
    if untold and not any(value == NOT_TAKEN for _, value in leaves_named(wanted, "sha256")):
        raise ResultsError(
            f"{folder} holds a run that was written by Trace.save without out=, so its data were not fingerprinted "
            f"({untold[0]}) and may be others than these; choose another folder (--out), or delete this one"
        )


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
