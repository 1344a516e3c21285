"""The demo's folder: the run with its report and its numbers; a later demo takes the place of an earlier one."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from stagetrace import Chain, Query, Trace, report
from stagetrace.errors import ResultsError
from stagetrace.results.atomic import cannot_write, is_litter, move
from stagetrace.results.json_value import JSON

RECORD = "demo.json"
MADE_BY = "stagetrace demo"

_UNMARKED = frozenset({"sign", "slope", "test_loss", "stages", "checks", "seconds"})
"""What the record of a demo holds that was written before records said who made them."""

_LAST = "run.json"
"""Moved last: a folder without it is no run, so what was interrupted half-way is never read as one."""


def check_place(out: Path) -> None:
    """Refuse a place that holds anything but a demo, before the work; nothing is written.

    Raises:
        ResultsError: a file, or a folder in which something else lies.
    """
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out} is a file, not a folder; type a new folder: stagetrace demo --out DIR")
    if out.exists() and not is_own(out) and not all(is_litter(path) for path in out.iterdir()):
        raise ResultsError(
            f"{out} holds something that is not the demo's, and stays as it is; type another folder: "
            f"stagetrace demo --out DIR"
        )


def is_own(out: Path) -> bool:
    """Whether a folder holds what a demo wrote."""
    try:
        said = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and (said.get("made_by") == MADE_BY or said.keys() >= _UNMARKED)


def keep(found: Trace, record: JSON, out: Path, chain: Chain, query: Query, command: str) -> Path:
    """Write the run, its report and its numbers beside `out`, then move each into place; what else lies there stays.

    Returns:
        The report.

    Raises:
        ResultsError: `out` holds something else by now, or the file system refused.
    """
    staging = out.resolve().with_name(f".{out.resolve().name}.saving")
    shutil.rmtree(staging, ignore_errors=True)  # what a killed demo left
    try:
        found.save(staging)
        (staging / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        report.write(staging, chain, query, command=command)
        check_place(out)
        out.mkdir(parents=True, exist_ok=True)
        _replace(sorted(staging.iterdir(), key=_order), out)
    except OSError as cause:
        raise cannot_write(out, cause) from cause
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report.write(out)  # once more, with what else lies in the folder, such as a validation


def _order(path: Path) -> int:
    """The record first: it says whose folder this is."""
    return (RECORD, _LAST).index(path.name) * 2 if path.name in (RECORD, _LAST) else 1


def _replace(paths: Sequence[Path], out: Path) -> None:
    (out / _LAST).unlink(missing_ok=True)
    for path in paths:
        target = out / path.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        move(path, target)
