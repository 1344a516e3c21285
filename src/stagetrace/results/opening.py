"""The beginning and the end of writing to a run folder: whose it is, and how a whole run takes the place of another."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from stagetrace.errors import ResultsError
from stagetrace.results.descriptions import differences, format_differences, refuse_uncertain
from stagetrace.results.files import RECORD, STAGING, cannot_write, is_litter, is_stub, move, run_files, sweep
from stagetrace.results.formats import run_of
from stagetrace.results.jsonable import JSON
from stagetrace.results.lock import Lock
from stagetrace.results.manifest import Manifest, digest_of, read_manifest
from stagetrace.results.reading import check_digests, missing_files, place_of_record


def opened(folder: Path, wanted: Mapping[str, JSON], *, replacing: bool) -> tuple[Manifest, Lock | None]:
    """The record to go on with, and the lock of the folder; a complete run that is not to be replaced needs none.

    wanted: the description of the run. replacing: see `RunFolder.open`.

    Raises:
        ResultsError: another process writes to the folder, it holds something else, or the file system refused.
    """
    found = _record_of(folder, wanted)
    if found is not None and found.is_complete and not replacing and not missing_files(folder, found):
        return found, None
    lock = Lock(folder)
    try:
        found = _record_of(folder, wanted)  # again: another process may have been here since
        sweep(folder)
        if (folder / STAGING).exists():
            promote(folder)
        return Manifest.of(wanted) if replacing else _continued(folder, found or Manifest.of(wanted)), lock
    except BaseException as cause:
        let_go(folder, lock)
        if isinstance(cause, OSError):
            raise cannot_write(folder, cause) from cause
        raise


def let_go(folder: Path, lock: Lock) -> None:
    """Let the folder go, and remove it if it was made for nothing."""
    lock.release()
    if lock.made_folder:
        with suppress(OSError):  # something is in it
            folder.rmdir()


def _continued(folder: Path, manifest: Manifest) -> Manifest:
    """The record to go on with, written: of a complete run that lacks files, that of an unfinished one."""
    if manifest.is_complete:
        check_digests(folder, manifest)  # from here on the record no longer has them
    running = replace(manifest, status="running", files={})
    running.write(folder)
    return running


def _record_of(folder: Path, wanted: Mapping[str, JSON]) -> Manifest | None:
    """The record of the run that is to be resumed, or None for a new or empty folder; nothing is written.

    Raises:
        ResultsError: the folder holds something else, a run that cannot be read, or another run.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as cause:
        raise ResultsError(f"{folder} is not a name in UTF-8; choose another folder") from cause
    if folder.exists() and not folder.is_dir():
        raise ResultsError(f"{folder} is a file, not a folder; choose an empty or new folder")
    place = place_of_record(folder)
    if not (place / RECORD).exists():
        _check_free(folder, digest_of(wanted))
        return None
    manifest = read_manifest(place)
    refuse_uncertain(folder, manifest.description, wanted)
    changed = differences(manifest.description, wanted)
    if changed:
        raise ResultsError(
            f"{folder} holds another run; it differs from this one in (there -> here):\n{format_differences(changed)}\n"
            f"choose another folder (--out), or delete this one"
        )
    return manifest


def _check_free(folder: Path, run: str) -> None:
    """Refuse a folder without a record, unless nothing is in it but files of this very run.

    Raises:
        ResultsError: says what is there.
    """
    if not folder.exists() or all(is_litter(path) for path in folder.iterdir()):
        return
    if not is_stub(folder):
        raise ResultsError(
            f"{folder} is not a stagetrace run folder (no {RECORD} in it); choose an empty or new folder"
        )
    for name in run_files(folder):
        if run_of(folder / name) != run:
            raise ResultsError(
                f"{folder} holds {name} of another run, whose {RECORD} was deleted; "
                "choose another folder (--out), or delete this one"
            )


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
