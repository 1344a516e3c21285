"""What a run says of itself, in pairs of words: how each stage was solved, settings, coverage."""

from collections.abc import Mapping
from typing import Any

from stagetrace.report.numbers import number, signed
from stagetrace.results import Trace
from stagetrace.solvers.base import Solution

Metadata = tuple[tuple[str, str], ...]


def stage_metadata(trace: Trace, stage: str) -> Metadata:
    """How a stage was solved, and which of its parameters the scores account for."""
    solution = trace.solutions.get(stage)
    facts = {} if solution is None else _solving(solution)
    coverage = at(trace.statistics, "coverage", stage)
    if isinstance(coverage, Mapping):
        facts["coverage"] = _coverage(coverage)
    link = at(trace.statistics, "links", stage)
    for setting, value in link.items() if isinstance(link, Mapping) else ():
        facts[f"link to the stage before ({setting})"] = in_a_line(value)
    return tuple(facts.items())


def settings(trace: Trace) -> Metadata:
    """How each stage was to be solved, and what the run took."""
    found = list[tuple[str, str]]()
    for what in ("curvature", "solver"):
        chosen = trace.description.get(what)
        for stage, choice in chosen.items() if isinstance(chosen, Mapping) else ():
            found.append((f"{what} of {stage}", in_a_line(choice)))
    for what in ("device", "processes", "threads"):
        if what in trace.statistics:
            found.append((what, in_a_line(trace.statistics[what])))
    seconds = at(trace.statistics, "seconds", "in all")
    if isinstance(seconds, float):
        found.append(("time", f"{seconds:.1f} s"))
    return tuple(found)


def _solving(solution: Solution) -> dict[str, str]:
    facts = {
        "equation solved": str(solution.system),
        "products": f"{solution.products:,} to solve, {solution.checks:,} to measure the residual",
        "residual": f"{number(solution.relative_residual)} (asked for {number(solution.tolerance)})",
        "status": solution.status.value,
    }
    if solution.spectrum is not None:
        facts["eigenvalues"] = f"{signed(solution.spectrum.smallest)} to {signed(solution.spectrum.largest)}"
    if solution.notes:
        facts["notes"] = "; ".join(solution.notes)
    return facts


def _coverage(coverage: Mapping[str, Any]) -> str:
    counts = [coverage.get(key, 0) for key in ("trained", "kept", "constant")]
    if not all(isinstance(count, int) for count in counts):
        return in_a_line(coverage)
    trained, kept, constant = counts
    text = f"{trained:,} of {trained + kept + constant:,} parameters trained here"
    text += f", {kept:,} kept from the stage before" if kept else ""
    return text + (f", {constant:,} constant: the scores do not account for them" if constant else "")


def in_a_line(value: Any) -> str:
    """A setting as people write it.

    Example:
        >>> in_a_line({"name": "Lanczos", "damping": 0.01, "filter": "Tikhonov"})
        'Lanczos(damping=0.01, filter=Tikhonov)'
    """
    if isinstance(value, Mapping) and "name" in value:
        rest = ", ".join(f"{key}={in_a_line(entry)}" for key, entry in value.items() if key != "name")
        return f"{value['name']}({rest})"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {in_a_line(entry)}" for key, entry in value.items())
    return str(value)


def at(record: Mapping[str, Any], *keys: str) -> Any:
    """What lies under the keys, one after the other; None where there is nothing."""
    found: Any = record
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
