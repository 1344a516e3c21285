"""run.json: what a run is, whether it is complete, and the digest of every file of it, its own included."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, final

from stagetrace.errors import ResultsError
from stagetrace.results.files import RECORD, atomic
from stagetrace.results.jsonable import JSON, from_json, json_text, read_json, to_json
from stagetrace.results.sign import SIGN
from stagetrace.version import __version__

FORMAT = 2

_SEAL = "sha256"


def versions() -> dict[str, str]:
    """The versions of stagetrace, torch, python and pyarrow that are running."""
    packages = {name: version(name) for name in ("torch", "pyarrow")}
    return {"python": platform.python_version(), "stagetrace": __version__, **packages}


@final
@dataclass(frozen=True)
class Shape:
    """How many scores a stage has; `n_queries` is None where the query was reduced to one number.

    Raises:
        ValueError: none at all.
    """

    n_examples: int
    n_queries: int | None

    def __post_init__(self) -> None:
        if self.n_examples < 1 or (self.n_queries is not None and self.n_queries < 1):
            raise ValueError(f"it records {self.n_examples} examples and {self.n_queries} queries, not at least 1")


@final
@dataclass(frozen=True)
class Manifest:
    """The content of run.json; stages stand in chain order.

    run: the digest of the description, which every file of the run carries.
    description: fingerprints and settings: what makes this run this run.
    scores, solutions: by stage, what the files hold; of a solution every field but its value.
    files: of a complete run, by name relative to the folder, the digest of each file's content.
    """

    run: str
    description: Mapping[str, JSON]
    status: Literal["running", "complete"] = "running"
    sign: str = SIGN
    scores: Mapping[str, Shape] = field(default_factory=dict[str, Shape])
    solutions: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    statistics: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    versions: Mapping[str, str] = field(default_factory=versions)
    files: Mapping[str, str] = field(default_factory=dict[str, str])

    @staticmethod
    def of(description: Mapping[str, JSON]) -> "Manifest":
        """The record of a run that begins."""
        return Manifest(digest_of(description), description)

    @property
    def is_complete(self) -> bool:
        return self.status == "complete"

    def write(self, folder: Path) -> None:
        """Write run.json, atomically.

        Raises:
            ResultsError: the file system refused.
        """
        content = {"format": FORMAT, **to_json(self, "run.json")}
        text = json_text({**content, _SEAL: digest_of(content)})
        with atomic(folder / RECORD) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def read_manifest(folder: Path) -> Manifest:
    """Read run.json.

    Raises:
        ResultsError: there is none, it cannot be read, is damaged, or is of another format.
    """
    path = folder / RECORD
    try:
        content = read_json(path)
        _check(content)
        manifest = from_json(Manifest, {key: value for key, value in content.items() if key not in ("format", _SEAL)})
    except FileNotFoundError as cause:
        raise ResultsError(
            f"{folder} is not a stagetrace run folder: it has no {RECORD}; give the folder of a run"
        ) from cause
    except (OSError, LookupError, TypeError, ValueError) as cause:
        raise ResultsError(
            f"{path} cannot be read as the record of a run ({' '.join(str(cause).split())}); "
            f"choose another folder, or delete this one and run again"
        ) from cause
    return manifest


def digest_of(content: object) -> str:
    """The digest of a JSON value, whatever the order of its keys.

    Example:
        >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def merged(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """The versions of a run that was continued: where they changed, all of them in order.

    Example:
        >>> merged({"torch": "2.12"}, {"torch": "2.13", "python": "3.12"})
        {'torch': '2.12, 2.13', 'python': '3.12'}
    """
    both = dict(before)
    for name, value in now.items():
        known = before.get(name, "").split(", ") if name in before else []
        both[name] = ", ".join(known if value in known else [*known, value])
    return both


def _check(content: Any) -> None:
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError("it has no format number")
    if content["format"] != FORMAT:
        raise ValueError(
            f"it has format {content['format']!r}, this stagetrace reads format {FORMAT}: read it with the version "
            "that wrote it, or run the same command again with another --out"
        )
    if content.get("sign") != SIGN:
        raise ValueError(f"its sign is {content.get('sign')!r}, not {SIGN!r}")
    if content.get(_SEAL) != digest_of({key: value for key, value in content.items() if key != _SEAL}):
        raise ValueError("it is damaged or was edited: its content is not what was written")
