"""The folder that an index is built in: begun, or gone on with after a process was killed."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stagetrace.errors import ResultsError, StagetraceError
from stagetrace.index.manifest import RECORD, IndexManifest, read_index_manifest
from stagetrace.results.files import is_litter, sweep
from stagetrace.results.jsonable import JSON, leaves_named
from stagetrace.results.lock import Lock
from stagetrace.results.manifest import refuse_different

__all__ = ["begun"]


@contextmanager
def begun(
    folder: Path, description: Mapping[str, JSON], target: str | None
) -> Generator[tuple[IndexManifest, Lock | None]]:
    """The record to go on with, and the right to write; None where the index is complete already.

    A folder in which nothing has been kept is removed again if the index was refused.

    Raises:
        ResultsError: another process writes there, or it holds something else, or another index: the message lists
            what differs.
    """
    found = _there(folder, description)
    if found is not None and found.is_complete:
        yield found, None
        return
    lock = Lock(folder)
    try:
        found = _there(folder, description)  # again: another process may have been here since
        sweep(folder)
        manifest = found or IndexManifest.of(description, target)
        if found is None:
            manifest.write(folder)
        yield manifest, lock
    except StagetraceError:
        if not any(path.suffix == ".safetensors" for path in folder.rglob("*")):
            (folder / RECORD).unlink(missing_ok=True)
        raise
    finally:
        lock.release()


def _there(folder: Path, wanted: Mapping[str, JSON]) -> IndexManifest | None:
    if folder.exists() and not folder.is_dir():
        raise ResultsError(f"{folder} is a file, not a folder; choose an empty or new folder (--out)")
    if not (folder / RECORD).exists():
        if folder.exists() and any(not is_litter(path) for path in folder.iterdir()):
            raise ResultsError(
                f"{folder} holds something else than an index (no {RECORD} in it); choose a new folder (--out)"
            )
        return None
    manifest = read_index_manifest(folder)
    unidentified = leaves_named(wanted, "unidentified")
    if unidentified:
        raise ResultsError(
            f"{folder} already holds an index, and this one cannot be compared with it: {unidentified[0][0]} refers to "
            f"something that cannot be identified; choose another folder (--out), or give its class a __getstate__ "
            "that returns what a score depends on"
        )
    refuse_different(folder, "index", manifest.description, wanted)
    return manifest
