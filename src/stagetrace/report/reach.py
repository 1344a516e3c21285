"""How far the scores of a recorded training reach: what leads the report and the summary of a run."""

from collections.abc import Iterable
from pathlib import Path

from stagetrace.checks.finding import Finding, Level
from stagetrace.errors import ResultsError
from stagetrace.report.attachments import read_findings
from stagetrace.results import Trace
from stagetrace.solvers.system import RecordedSteps

SMOOTHNESS = "smoothness"

NOT_CHECKED = (
    "how far its scores reach was not checked; type: stagetrace check TARGET --smoothness --out DIR, with this run's "
    "folder"
)
NOT_REPEATED = (
    "how far its scores reach was not checked: its training, or a later stage's, was not recorded, so that it cannot "
    "be repeated; compare by stagetrace validate"
)


def reach(trace: Trace, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """A verdict for each stage that has scores, in the order of training; none where no stage was recorded.

    findings: of the run; those of `stagetrace check --smoothness` are among them if it was typed.
    """
    exact = {name: isinstance(each.system, RecordedSteps) for name, each in trace.solutions.items()}
    if not any(exact.values()):
        return ()
    known = {found.where: found for found in findings if found.what == SMOOTHNESS}
    names = [name for name in exact if name in trace.scores]
    return tuple(known.get(name) or Finding(name, SMOOTHNESS, Level.NOTE, _unknown(name, exact)) for name in names)


def reach_of_run(trace: Trace, folder: Path) -> tuple[Finding, ...]:
    """The same by what lies in the run's folder; a warning in its place where that cannot be read."""
    if not reach(trace, ()):
        return ()
    try:
        return reach(trace, read_findings(folder))
    except ResultsError as cause:
        return (Finding("run", SMOOTHNESS, Level.WARNING, str(cause)),)


def _unknown(stage: str, exact: dict[str, bool]) -> str:
    """Why nothing is known of a stage. exact: whether each was recorded."""
    names = list(exact)
    return NOT_CHECKED if all(exact[later] for later in names[names.index(stage) :]) else NOT_REPEATED
