"""The preflight of a chain and a query: one finding after the other, cheap ones first."""

from collections.abc import Iterator, Mapping

from stagetrace.checks import Finding, Level, in_short
from stagetrace.curvature.auto import describe_subset
from stagetrace.curvature.choices import Curvature
from stagetrace.preflight.budget import Fitted, check_budget, fit
from stagetrace.preflight.predictor import Predictor
from stagetrace.preflight.products import solving
from stagetrace.preflight.recorded import replays
from stagetrace.preflight.stationary import curvature_finding, displacement, stationarity
from stagetrace.preflight.units import as_size
from stagetrace.preflight.work import Look
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solver
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.coverage import Coverage, changed_statistics, notices, remarks, unfollowed_statistics
from stagetrace.stages.modes import each_in_ordinary_modes
from stagetrace.tracing.query import Query
from stagetrace.tracing.rounded import too_fine
from stagetrace.tracing.usual import chosen, usual_solvers


@each_in_ordinary_modes
def inspect(
    chain: Chain,
    query: Query,
    curvature: Mapping[str, Curvature],
    solver: Mapping[str, Solver],
    progress: Progress,
    *,
    budget: int | str | None = None,
    kept: bool = True,
) -> Iterator[Finding]:
    """Look at everything a trace depends on: data, mapping, coverage, stationarity, curvature, cost.

    budget: of memory, as for `fit`: settings are lowered to it, and a plan that passes it is refused. kept: whether the
    run is to be kept in a folder.

    Raises:
        DescriptionError: no plan fits into the budget.
        StagetraceError: the trace would be refused; the message is the one the trace would give.
    """
    said = chosen(solver, usual_solvers(chain, curvature))
    if budget is not None:
        fitted = fit(chain, query, budget, curvature, solver, where="--budget")
        curvature, solver = fitted.curvature, fitted.solver
        yield Finding("run", "budget", Level.OK, _fits(fitted, budget))
        yield from (Finding("run", "budget", Level.NOTE, note) for note in fitted.notes)
    predictor = Predictor(chain, query, curvature, solver, kept)
    predictor.begun()
    for bound in chain:
        yield from in_short(predictor.checked(bound))
        yield from (Finding(bound.name, "mode", Level.NOTE, notice) for notice in notices(bound.stage))
        yield from (Finding(bound.name, "loss", Level.OK, remark) for remark in remarks(bound.stage))
        yield Finding(bound.name, "coverage", *_coverage(bound))
        if bound.previous is not None:
            yield Finding(bound.name, "mapping", Level.OK, _mapping(bound))
            yield from displacement(bound)
            moved = *changed_statistics(bound), *unfollowed_statistics(bound)
            yield from (Finding(bound.name, "statistics", Level.WARNING, text) for text in moved)
    of_query = predictor.checked_query()
    with progress.task("rehearsing the run", None, "stages"):  # before anything else has loaded what it has to load
        forecast = predictor.forecast()
    for bound in chain:
        if bound.recording is not None:
            yield replays(bound, progress)
            continue
        yield stationarity(bound, solver[bound.name], progress)
        yield from (finding for finding in said if finding.where == bound.name)
        yield from _subset(curvature[bound.name], bound)
        operator = curvature[bound.name].operator(bound)
        look = Look.at(bound, operator, progress)
        yield curvature_finding(bound, operator, solver[bound.name], look)
        yield solving(bound, operator, solver[bound.name], look, query.rows or 1)
        rough = too_fine(bound.name, operator.cost(), solver[bound.name], query.rows or 1)
        yield from () if rough is None else (rough,)
    yield from in_short(of_query)
    contrast = "" if query.contrast is None else f" less a contrast of {len(query.contrast):,}"
    text = f"{len(query.data):,} examples{contrast}, reduction '{query.reduction}'; the loss is one number per example"
    yield Finding("query", "query", Level.OK, text)
    yield from forecast.findings()
    if budget is not None:
        check_budget(forecast, budget, "--budget")


def _fits(fitted: Fitted, budget: int | str) -> str:
    return f"by count the run holds at most {as_size(fitted.memory)} of memory, within --budget {budget}"


def _subset(curvature: Curvature, bound: BoundStage) -> Iterator[Finding]:
    text = describe_subset(curvature, bound)
    if text:
        yield Finding(bound.name, "examples", Level.OK, text)


def _coverage(bound: BoundStage) -> tuple[Level, str]:
    coverage = Coverage.of(bound)
    text = str(coverage)
    if coverage.buffers:
        text += f"; buffers are constants ({_some(coverage.buffers)})"
    if coverage.shared_buffers:
        still = "changed" if coverage.moved_buffers else "the same in both stages"
        if bound.stage.link is not None and not bound.stage.link.keeps_shared:
            still = "trained further with their layers"
        text += f"; shared with the previous stage: {_some(coverage.shared_buffers)}, {still}"
    return (Level.NOTE if coverage.constant or coverage.buffers else Level.OK), text


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _mapping(bound: BoundStage) -> str:
    pairs = {**bound.inherited_from, **bound.anchored_to}
    some = ", ".join(f"{ours} <- {theirs}" for ours, theirs in list(pairs.items())[:4])
    more = f" and {len(pairs) - 4} more" if len(pairs) > 4 else ""
    return f"{len(bound.inherited_from)} parameters inherited, {len(bound.anchored_to)} trained further: {some}{more}"
