"""The preflight of a chain and a query: one finding after the other, cheap ones first."""

from collections.abc import Iterator, Mapping

from stagetrace.checks import Finding, Level, in_short, verify_problem, verify_query
from stagetrace.curvature.auto import subset_in_words
from stagetrace.curvature.choices import Curvature
from stagetrace.preflight.plan import Estimate, plan_scoring, plan_solve, total
from stagetrace.preflight.recorded import replays
from stagetrace.preflight.stationary import curvature_finding, displacement, stationarity
from stagetrace.preflight.work import Look
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solver
from stagetrace.stages.chain import Chain
from stagetrace.stages.coverage import Coverage, moved_statistics, notices
from stagetrace.stages.modes import each_in_ordinary_modes
from stagetrace.stages.problem import Problem
from stagetrace.tracing.query import Query


@each_in_ordinary_modes
def inspect(
    chain: Chain,
    query: Query,
    curvature: Mapping[str, Curvature],
    solver: Mapping[str, Solver],
    progress: Progress,
) -> Iterator[Finding]:
    """Look at everything a trace depends on: data, mapping, coverage, stationarity, curvature, cost.

    Raises:
        StagetraceError: the trace would be refused; the message is the one the trace would give.
    """
    costs: list[Estimate] = []
    for place, problem in enumerate(chain):
        yield from in_short(verify_problem(problem, chain.stages[:place]))
        yield from (Finding(problem.name, "mode", Level.NOTE, notice) for notice in notices(problem.stage))
        yield Finding(problem.name, "coverage", *_coverage(problem))
        if problem.previous is not None:
            yield Finding(problem.name, "mapping", Level.OK, _mapping(problem))
            yield from displacement(problem)
            yield from (Finding(problem.name, "statistics", Level.WARNING, text) for text in moved_statistics(problem))
        if problem.recording is not None:
            yield replays(problem, progress)
            continue
        yield stationarity(problem, progress)
        yield from _subset(curvature[problem.name], problem)
        operator = curvature[problem.name].operator(problem)
        look = Look.at(problem, operator, progress)
        yield curvature_finding(problem, operator, solver[problem.name], look)
        for cost in (
            plan_solve(problem, curvature[problem.name], operator, solver[problem.name], look, query.rows or 1),
            plan_scoring(problem, query),
        ):
            costs.append(cost)
            yield cost.finding
    risk = query.risk(chain.last)
    yield from in_short(verify_query(risk, chain.last, chain.stages[:-1]))
    text = f"{len(risk.examples):,} examples, reduction '{query.reduction}'; the loss is one number per example"
    yield Finding("query", "query", Level.OK, text)
    yield total(costs)


def _subset(curvature: Curvature, problem: Problem) -> Iterator[Finding]:
    text = subset_in_words(curvature, problem)
    if text:
        yield Finding(problem.name, "examples", Level.OK, text)


def _coverage(problem: Problem) -> tuple[Level, str]:
    coverage = Coverage.of(problem)
    text = str(coverage)
    if coverage.buffers:
        text += f"; buffers are constants ({_some(coverage.buffers)})"
    if coverage.shared_buffers:
        still = "moved" if coverage.moved_buffers else "the same in both stages"
        if problem.stage.link is not None and not problem.stage.link.keeps_shared:
            still = "trained further with their layers"
        text += f"; shared with the previous stage: {_some(coverage.shared_buffers)}, {still}"
    return (Level.NOTE if coverage.constant or coverage.buffers else Level.OK), text


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _mapping(problem: Problem) -> str:
    pairs = {**problem.kept, **problem.moved}
    some = ", ".join(f"{ours} <- {theirs}" for ours, theirs in list(pairs.items())[:4])
    more = f" and {len(pairs) - 4} more" if len(pairs) > 4 else ""
    return f"{len(problem.kept)} parameters kept, {len(problem.moved)} moved: {some}{more}"
