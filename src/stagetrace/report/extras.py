"""What may lie in a run's folder beside the run: preflight findings, a damping sweep, a validation with its plots."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from stagetrace.checks.finding import Finding, Level
from stagetrace.errors import ResultsError
from stagetrace.report.sweep import NAME as SWEEP
from stagetrace.report.sweep import Stability, read_sweep
from stagetrace.results.atomic import atomic
from stagetrace.validation.report import RECORD, between, figure

CHECK = "check.json"
PLOTS = ("agreement.png", "estimators.png")


@final
@dataclass(frozen=True)
class Table:
    """A table of a validation: headings, rows of ready cells, a line below."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@final
@dataclass(frozen=True)
class Extras:
    """Each empty where the folder has none.

    findings: of `stagetrace check`. stability: of the damping sweep.
    validation: a table for each choice of removals. plots: PNG by file name.
    """

    findings: tuple[Finding, ...] = ()
    stability: tuple[Stability, ...] = ()
    validation: tuple[Table, ...] = ()
    plots: Mapping[str, bytes] = field(default_factory=dict[str, bytes])

    @staticmethod
    def read(folder: Path) -> "Extras":
        """Read what is there.

        Raises:
            ResultsError: a file cannot be read; the message names it.
        """
        record = _json(folder / RECORD)
        return Extras(
            findings=tuple(_finding(found) for found in _json(folder / CHECK) or ()),
            stability=read_sweep(_json(folder / SWEEP)),
            validation=()
            if record is None
            else tuple(_table(choice, record["estimators"]) for choice in record["choices"]),
            plots={name: (folder / name).read_bytes() for name in PLOTS if (folder / name).exists()},
        )


def write_findings(folder: Path, findings: Sequence[Finding]) -> Path:
    """Keep preflight findings beside a run, for its report.

    Raises:
        ResultsError: the file system refused.
    """
    records = [{"where": f.where, "what": f.what, "level": f.level.value, "text": f.text} for f in findings]
    with atomic(folder / CHECK) as temporary:
        temporary.write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder / CHECK


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ResultsError(
            f"{path} cannot be read ({cause}); delete it, or write it anew, then report again"
        ) from cause


def _finding(record: Mapping[str, str]) -> Finding:
    return Finding(record["where"], record["what"], Level(record["level"]), record["text"])


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
