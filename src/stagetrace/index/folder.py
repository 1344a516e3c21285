"""The folder that an index is built in: begun, or gone on with after a process was killed."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stagetrace.errors import StagetraceError
from stagetrace.index.manifest import RECORD, IndexManifest, read_index_manifest
from stagetrace.results.files import holds, sweep
from stagetrace.results.jsonable import JSON
from stagetrace.results.lock import Lock
from stagetrace.results.manifest import refuse_different, refuse_unidentified

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
    if not holds(folder, RECORD):
        return None
    manifest = read_index_manifest(folder)
    refuse_unidentified(folder, "index", wanted)
    refuse_different(folder, "index", manifest.description, wanted)
    return manifest
