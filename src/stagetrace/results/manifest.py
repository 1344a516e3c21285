"""run.json: what a run is, whether it is complete, and the digest of every file of it, its own included.

Every other file of the run says whose it is, too, and the digest of what it holds, so that it cannot be taken for
one of another run, and a damaged one cannot be used.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, final

from stagetrace.errors import ResultsError
from stagetrace.results.files import RECORD, read_as
from stagetrace.results.jsonable import (
    JSON,
    differences,
    format_differences,
    from_json,
    leaves_named,
    to_json,
)
from stagetrace.results.seals import digest_of, read_record, write_record
from stagetrace.results.sign import SIGN, UNIT
from stagetrace.stages.fingerprint import NOT_TAKEN
from stagetrace.version import __version__

FORMAT = 2

_OTHERWISE = "read it with the version that wrote it, or run the same command again with another --out"


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
    tokens: by stage, how many token scores were kept, where they were asked for.
    files: of a complete run, by name relative to the folder, the digest of each file's content.
    """

    run: str
    description: Mapping[str, JSON]
    status: Literal["running", "complete"] = "running"
    sign: str = SIGN
    scores: Mapping[str, Shape] = field(default_factory=dict[str, Shape])
    solutions: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])
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
        write_record(folder / RECORD, to_json(self, "run.json"), FORMAT)


def read_manifest(folder: Path) -> Manifest:
    """Read run.json.

    Raises:
        ResultsError: there is none, it cannot be read, is damaged, or is of another format.
    """
    path = folder / RECORD
    if not path.exists():
        raise ResultsError(f"{folder} is not a stagetrace run folder: it has no {RECORD}; give the folder of a run")
    what, remedy = "the record of a run", "choose another folder, or delete this one and run again"
    content = read_record(path, what, (FORMAT,), _OTHERWISE, remedy)
    with read_as(path, what, remedy):
        return from_json(Manifest, content)


def merged(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """The versions of a run that was continued: where they changed, all of them in order.

    Example:
        >>> merged({"torch": "2.12"}, {"torch": "2.13", "python": "3.12"})
        {'torch': '2.12, 2.13', 'python': '3.12'}
    """
    merged_versions = dict(before)
    for name, value in now.items():
        used = before[name].split(", ") if name in before else []
        merged_versions[name] = ", ".join(dict.fromkeys([*used, value]))
    return merged_versions


# What the other files of a run say of themselves


def identity(run: str, stage: str) -> dict[str, str]:
    """Whose a file is; run: the digest of the run's description."""
    return {"format": str(FORMAT), "run": run, "stage": stage, "sign": SIGN, "units": UNIT}


def check_identity(found: Mapping[str, object], run: str, stage: str) -> None:
    """Refuse what a file says of itself if it is another's.

    Raises:
        ValueError: names what differs.
    """
    for key, value in identity(run, stage).items():
        if key != "run" and found.get(key) != value:
            raise ValueError(f"its {key} is {found.get(key)!r}, not {value!r}")
    if found.get("run") != run:
        raise ValueError(f"it belongs to another run, {str(found.get('run'))[:12]}, and this folder to {run[:12]}")


# Whether two descriptions are those of the same run


def refuse_different(folder: Path, what: str, stored: JSON, wanted: JSON) -> None:
    """Refuse to go on with something else.

    what: what the folder holds, such as "run".

    Raises:
        ResultsError: the message lists what differs.
    """
    changed = differences(stored, wanted)
    if changed:
        raise ResultsError(
            f"{folder} holds another {what}; it differs from this one in (there -> here):\n"
            f"{format_differences(changed)}\nchoose another folder (--out), or delete this one"
        )


def refuse_unidentified(folder: Path, what: str, wanted: Mapping[str, JSON]) -> None:
    """Refuse to go on with something that cannot be compared with this, since a part of this cannot be identified.

    what: as for `refuse_different`.

    Raises:
        ResultsError: the message names the part.
    """
    unidentified = leaves_named(wanted, "unidentified")
    if unidentified:
        path, names = unidentified[0]
        first, *more = names if isinstance(names, list) else [str(names)]
        more = len(more) + len(unidentified) - 1
        beside = f" (nor can {more} more)" if more else ""
        raise ResultsError(
            f"the {what} in {folder} cannot be compared with this one: {path} refers to {first}, which cannot be "
            f"identified{beside}; choose another folder (--out), or give its class a __getstate__ that "
            "returns what a score depends on"
        )


def refuse_uncertain(folder: Path, stored: Mapping[str, JSON], wanted: Mapping[str, JSON]) -> None:
    """Refuse to go on with a run that may be another one.

    Raises:
        ResultsError: something of this run cannot be identified, or the folder's run was not fingerprinted like it.
    """
    refuse_unidentified(folder, "run", wanted)
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
