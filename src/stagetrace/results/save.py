"""A whole trace, written at once: the same files that a run keeps as it goes."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

from stagetrace.results.adjoint import write_solution
from stagetrace.results.atomic import STAGING, cannot_write, move, sweep
from stagetrace.results.folder import check_folder
from stagetrace.results.json_value import JSON, plain
from stagetrace.results.layout import adjoint_path, part_path, run_files
from stagetrace.results.manifest import Manifest, records, shapes
from stagetrace.results.parquet import write_part
from stagetrace.results.part import split
from stagetrace.results.trace import Trace


def save(trace: Trace, folder: Path) -> None:
    """Write the trace to a new or empty folder, or over a run of the same description; see `Trace.save`.

    Everything is first written to a folder inside, so that a full disk costs nothing; then, with run.json saying
    "running", the files move into place one by one, and run.json says "complete" last.
    """
    manifest = _manifest(trace)
    check_folder(folder, manifest.description)
    fresh = not folder.exists()
    staging = folder / STAGING
    try:
        sweep(folder)
        _fill(staging, trace)
        replace(manifest, complete=False).write(folder)
        _promote(staging, folder)
        manifest.write(folder)
    except OSError as cause:
        raise cannot_write(folder, cause) from cause
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if fresh and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _manifest(trace: Trace) -> Manifest:
    return Manifest(
        complete=True,
        description=cast("dict[str, JSON]", plain(trace.description, "description")),
        scores=shapes(list(trace.scores.values())),
        solutions=records(trace.solutions),
        statistics=cast("dict[str, JSON]", plain(trace.statistics, "statistics")),
        versions=dict(trace.versions),
    )


def _fill(staging: Path, trace: Trace) -> None:
    for stage, scores in trace.scores.items():
        for number, part in enumerate(split(scores)):
            write_part(part_path(staging, stage, number), stage, number, part)
    for stage, solution in trace.solutions.items():
        write_solution(adjoint_path(staging, stage), solution)


def _promote(staging: Path, folder: Path) -> None:
    """Move what was staged into place, and remove what an earlier run had beyond it."""
    staged = run_files(staging)
    for path in staged:
        move(staging / path, folder / path)
    for path in set(run_files(folder)) - set(staged):
        (folder / path).unlink()
