"""What may lie in a run's folder beside the run: preflight findings, a damping sweep, a validation with its plots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, final

from stagetrace.checks.finding import Finding
from stagetrace.report.picture import is_png
from stagetrace.report.preview import whole_characters
from stagetrace.report.sweep import NAME as SWEEP
from stagetrace.report.sweep import Stability, read_sweep
from stagetrace.results.files import RECORD as MANIFEST
from stagetrace.results.files import read_as, write_text
from stagetrace.results.jsonable import from_json, json_text, read_json
from stagetrace.results.table import Table
from stagetrace.validation.report import RECORD, between, figure

T = TypeVar("T")

CHECK = "check.json"
PLOTS = ("agreement.png", "estimators.png")
_REMEDY = "delete it, or write it again, then report again"
LARGEST_PLOT = 10_000
"""Pixels of a side of a plot."""


@final
@dataclass(frozen=True)
class Attachments:
    """Each empty where the folder has none.

    findings: of `stagetrace check`, and those of the run's own checks that are not among them; preflight: whether
        there are any of the former. stability: of the damping sweep.
    validation: a table for each choice of removals. plots: PNG by file name.
    """

    findings: tuple[Finding, ...] = ()
    preflight: bool = False
    stability: tuple[Stability, ...] = ()
    validation: tuple[Table, ...] = ()
    plots: Mapping[str, bytes] = field(default_factory=dict[str, bytes])

    @staticmethod
    def read(folder: Path, checks: object = ()) -> "Attachments":
        """Read what is there.

        checks: what the run itself found before it began, as its `run.json` has it.

        Raises:
            ResultsError: a file cannot be read; the message names it.
        """
        typed = read_findings(folder)
        with read_as(folder / MANIFEST, "part of a report", _REMEDY):
            own = _findings(checks or ())
        looked_at = {(found.where, found.what) for found in typed}
        return Attachments(
            findings=(*typed, *(found for found in own if (found.where, found.what) not in looked_at)),
            preflight=bool(typed),
            stability=_read(folder / SWEEP, read_sweep),
            validation=_read(
                folder / RECORD,
                lambda record: tuple(_table(choice, record["estimators"]) for choice in record["choices"]),
            ),
            plots={name: picture for name in PLOTS if (picture := _plot(folder / name))},
        )


def write_findings(folder: Path, findings: Sequence[Finding]) -> Path:
    """Keep preflight findings beside a run, for its report.

    Raises:
        ResultsError: the file system refused.
    """
    write_text(folder / CHECK, whole_characters(json_text(findings)))
    return folder / CHECK


def read_findings(folder: Path) -> tuple[Finding, ...]:
    """What `write_findings` kept; nothing where it was not called.

    Raises:
        ResultsError: the file cannot be read.
    """
    return _read(folder / CHECK, _findings)


def _read(path: Path, made: Callable[[Any], tuple[T, ...]]) -> tuple[T, ...]:
    """What is made of a file; nothing where there is none."""
    if not path.exists():
        return ()
    with read_as(path, "part of a report", _REMEDY):
        return made(read_json(path))


def _plot(path: Path) -> bytes:
    """The plot; nothing where there is none that is a picture of a size to be shown."""
    if not path.exists():
        return b""
    content = path.read_bytes()
    return content if is_png(content, LARGEST_PLOT) else b""


def _findings(records: Any) -> tuple[Finding, ...]:
    return tuple(from_json(Finding, record) for record in records)


def _table(choice: Mapping[str, Any], estimators: Mapping[str, Any]) -> Table:
    """A row for each estimator, as `stagetrace validate` prints it: no slope where only the ranking means something."""
    rows = list[tuple[str, ...]]()
    for name, found in choice["agreement"].items():
        r, rank = _number(found, "pearson_r"), _number(found, "spearman_r")
        interval = found.get("pearson_interval") or (float("nan"), float("nan"))
        low, high = (float("nan") if end is None else float(end) for end in interval)
        slope = _number(found, "slope") if estimators[name]["unit"] is not None else float("nan")
        rows.append((name, figure(r), between((low, high)), figure(rank), figure(slope, 2)))
    runs = f", mean of {choice['runs']} runs" if choice["runs"] > 1 else ""
    return Table(
        f"{choice['choice']} (n = {choice['n']}{runs})",
        ("estimator", "Pearson's r", "95 % of r", "Spearman", "slope"),
        tuple(rows),
    )


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return float("nan") if value is None else float(value)
