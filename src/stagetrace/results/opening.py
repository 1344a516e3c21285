"""The beginning and the end of writing a run: what is found in its folder, and how a saved one takes its place."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stagetrace.results.files import RECORD, STAGING, cannot_write, move, run_files, sweep
from stagetrace.results.jsonable import JSON
from stagetrace.results.lock import Lock
from stagetrace.results.manifest import Manifest, read_manifest
from stagetrace.results.reading import check_digests, missing_files, record_of

__all__ = ["opened", "promote"]


def opened(folder: Path, wanted: Mapping[str, JSON], *, replacing: bool) -> tuple[Manifest, Lock | None]:
    """The record to go on with, and the lock of the folder; a complete run that is not to be replaced needs none.

    wanted: the description of the run. replacing: see `RunFolder.open`.

    Raises:
        ResultsError: another process writes to the folder, it holds something else, or the file system refused.
    """
    found = record_of(folder, wanted)
    if found is not None and found.is_complete and not replacing and not missing_files(folder, found):
        return found, None
    lock = Lock(folder)
    try:
        found = record_of(folder, wanted)  # again: another process may have been here since
        sweep(folder)
        if (folder / STAGING).exists():
            promote(folder)
        return Manifest.of(wanted) if replacing else _continued(folder, found or Manifest.of(wanted)), lock
    except BaseException as cause:
        lock.release()
        if isinstance(cause, OSError):
            raise cannot_write(folder, cause) from cause
        raise


def _continued(folder: Path, manifest: Manifest) -> Manifest:
    """The record to go on with, written: of a complete run that lacks files, that of an unfinished one."""
    if manifest.is_complete:
        check_digests(folder, manifest)  # from here on the record no longer has them
    running = replace(manifest, status="running", files={})
    running.write(folder)
    return running


def promote(folder: Path) -> None:
    """Move a run that has been saved over the one in the folder into its place, its record last.

    A reader finds the new run whole from the moment that its record lies in the staging folder; whoever is killed on
    the way leaves the rest to the next process.

    Raises:
        ResultsError: the file system refused.
    """
    staging = folder / STAGING
    manifest = read_manifest(staging)
    try:
        for name in run_files(staging):
            move(staging / name, folder / name)
        for name in set(run_files(folder)) - set(manifest.files):
            (folder / name).unlink()
        move(staging / RECORD, folder / RECORD)
    except OSError as cause:
        raise cannot_write(folder, cause) from cause
    shutil.rmtree(staging, ignore_errors=True)
