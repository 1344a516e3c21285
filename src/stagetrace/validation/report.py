"""What a validation says: tables, a record in JSON, and the files of both."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from stagetrace.checks.finding import Level
from stagetrace.errors import StagetraceWarning
from stagetrace.results.files import write_text
from stagetrace.results.jsonable import JSON, json_text
from stagetrace.results.manifest import versions
from stagetrace.results.sign import UNIT
from stagetrace.results.table import Table
from stagetrace.validation import plots
from stagetrace.validation.datamodel import LinearDatamodelling
from stagetrace.validation.validate import Measured, Validation

RECORD = "validate.json"

SIGN = (
    f"predicted and true are changes of the query loss (unit: {UNIT}) when the examples are removed, true ones "
    "against a run that keeps them all; negative = removing them helps"
)
FIGURES = (
    "slope: true over predicted, 1 is ideal; '-' where only an estimator's ranking means something, and for a figure "
    "that these removals do not define. r, rest: without the removal of the largest prediction"
)


def tables(validation: Validation) -> list[Table]:
    """A table for each choice of removals: a row per estimator, the reliability of the truth below.

    Groups also get the linear datamodelling score with its interval; the query is one, so it is Spearman's r.
    """
    return [_table(validation, measured) for measured in validation.measured]


def work(validation: Validation) -> str:
    """How much was trained, in a sentence."""
    n = validation.retrainings
    return (
        f"{n} retraining{'s' if n != 1 else ''} from stage '{validation.stage}' on, "
        f"{validation.per_minute:.3g} a minute in each process"
    )


def control(validation: Validation) -> str:
    """Where training again with every example ended, beside the traced model, in a sentence."""
    finding = validation.control.finding(validation.stage)
    return f"{finding.level.value}: {finding.text}" if finding.level is Level.WARNING else finding.text


def datamodelling(measured: Measured) -> dict[str, LinearDatamodelling] | None:
    """The linear datamodelling score of each estimator; None where single examples were removed."""
    if all(len(removal) == 1 for removal in measured.removals):
        return None
    return {name: LinearDatamodelling.of(values, measured.true) for name, values in measured.predicted.items()}


def record(
    validation: Validation,
    settings: Mapping[str, JSON] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Every number, as JSON holds it: an interval is a list of two, a figure that is not defined is None.

    settings: of the run, kept as they are. left_out: estimators that do not apply, with the reason.
    """
    return {
        "sign": SIGN,
        "unit": UNIT,
        "stage": validation.stage,
        "settings": dict(settings or {}),
        "estimators": {name: {"unit": unit} for name, unit in validation.units.items()},
        "not_applicable": dict(left_out or {}),
        "control": validation.control.record(),
        "retrainings": validation.retrainings,
        "seconds": validation.seconds,
        "retrainings_per_minute": validation.per_minute if math.isfinite(validation.per_minute) else None,
        "versions": versions(),
        "choices": [_choice(measured) for measured in validation.measured],
    }


def save(
    validation: Validation,
    folder: str | Path,
    *,
    settings: Mapping[str, JSON] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `validate.json` and, with matplotlib, `agreement.png` and `estimators.png`; each whole or not at all.

    `validate.json` holds `record(...)`: sign, unit, settings, and for each of its `choices` the agreement of every
    estimator and the `removals`, each `{"removed": indices, "predicted": {estimator: number}, "true": [per run]}`.

    Args:
        folder: made if there is none; may be the `out` of `validate`.
        settings, left_out: see `record`.

    Returns:
        The files, those of before replaced.

    Raises:
        ResultsError: the file system refused.

    Example:
        >>> from stagetrace.validation import validate
        >>> from stagetrace.validation.report import save
        >>> validation = validate(chain, query, fit=Resolve())  # doctest: +SKIP
        >>> save(validation, "runs/digits")  # doctest: +SKIP
        [PosixPath('runs/digits/validate.json'), PosixPath('runs/digits/agreement.png'), ...]
    """
    path = Path(folder) / RECORD
    write_text(path, json_text(record(validation, settings, left_out), lists_in_a_line=True))
    if not plots.available():
        missing = "no plots: matplotlib is not installed; type: pip install 'stagetrace[report]'"
        warnings.warn(missing, StagetraceWarning, stacklevel=2)
        return [path]
    return [path, *plots.save(validation, folder)]


def _table(validation: Validation, measured: Measured) -> Table:
    lds = datamodelling(measured)
    rows = list[tuple[str, ...]]()
    for name, agreement in measured.agreement.items():
        ranking = (
            (figure(agreement.spearman_r),) if lds is None else (figure(lds[name].lds), between(lds[name].interval))
        )
        slope = figure(agreement.slope, 2) if validation.units[name] is not None else "-"
        r = figure(agreement.pearson_r), between(agreement.pearson_interval)
        rows.append((name, *r, *ranking, slope, figure(agreement.without_largest)))
    ranked = ("Spearman",) if lds is None else ("LDS", "95 % of LDS")
    runs = f", mean of {len(measured.effects)} runs" if len(measured.effects) > 1 else ""
    return Table(
        f"stage '{validation.stage}', {measured.choice} (n = {len(measured.removals)}{runs})",
        ("estimator", "r", "95 % of r", *ranked, "slope", "r, rest"),
        tuple(rows),
        f"truth: {measured.reliability}" if measured.reliability is not None else "",
        words=frozenset({"estimator"}),
    )


def figure(value: float, digits: int = 4) -> str:
    """A figure for a table; '-' where it is not defined."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def between(interval: tuple[float, float]) -> str:
    """An interval for a table; '-' where it is not known."""
    low, high = interval
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low + high) else "-"


def _choice(measured: Measured) -> dict[str, object]:
    lds = datamodelling(measured)
    return {
        "choice": measured.choice,
        "by": measured.by,
        "n": len(measured.removals),
        "runs": len(measured.effects),
        "reliability": measured.reliability.record() if measured.reliability is not None else None,
        "agreement": {
            name: {**agreement.record(), **({"lds": lds[name].record()} if lds is not None else {})}
            for name, agreement in measured.agreement.items()
        },
        "removals": _removals(measured),
    }


def _removals(measured: Measured) -> Sequence[Mapping[str, object]]:
    predicted = {name: values.tolist() for name, values in measured.predicted.items()}
    effects = measured.effects.mT.tolist()
    return [
        {
            "removed": list(removal),
            "predicted": {name: values[place] for name, values in predicted.items()},
            "true": effects[place],
        }
        for place, removal in enumerate(measured.removals)
    ]
