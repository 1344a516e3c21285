"""`rank`: for each of many queries the examples at both ends of its ranking, in memory that does not grow with them."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from stagetrace.curvature.auto import Auto
from stagetrace.curvature.choices import Curvature
from stagetrace.errors import refuse
from stagetrace.parallel import world
from stagetrace.progress import Bars, Progress, Silent
from stagetrace.results import JSON
from stagetrace.results.files import holds
from stagetrace.results.parts import Part
from stagetrace.results.ranking import Ranking, joined, ranked
from stagetrace.results.rankings import RECORD, is_kept, read_rankings, write_rankings
from stagetrace.solvers.base import Solver
from stagetrace.solvers.lanczos import Lanczos
from stagetrace.solvers.together import MANY, RANKING
from stagetrace.stages.chain import Chain
from stagetrace.stages.modes import in_ordinary_modes
from stagetrace.stages.stage import check_count
from stagetrace.tracing.arguments import check_arguments, check_options
from stagetrace.tracing.backward import backward_pass, solution_warnings
from stagetrace.tracing.blocks import blocks
from stagetrace.tracing.describe import by_stage, describe, scored_stages
from stagetrace.tracing.ensemble import trained_seeds
from stagetrace.tracing.query import Query
from stagetrace.tracing.responses.response import Response
from stagetrace.tracing.same_job import check_same_job
from stagetrace.tracing.trace import check_not_flat, checked, response_of, say_chosen
from stagetrace.tracing.usual import usual_solvers

__all__ = ["rank", "solver_for_order"]


@in_ordinary_modes
def rank(
    chain: Chain,
    query: Query,
    *,
    top: int = 100,
    curvature: Curvature | str | Mapping[str, Curvature | str] | None = None,
    solver: Solver | str | Mapping[str, Solver | str] | None = None,
    of: Iterable[str] | str | None = None,
    memory: int = 4 * 2**30,
    out: str | Path | None = None,
    progress: Progress | bool = False,
) -> dict[str, Ranking]:
    """For each example of a query the `top` most harmful and most helpful training examples of each stage.

    What `trace` does with `reduction="none"`, without its matrix of scores: a part of the examples is scored for all
    queries, its largest and smallest scores are kept, and the rest is forgotten.

    Only the order counts here, so that from 10 queries on the default solver asks for a relative residual of 0.1, which
    keeps 0.96 to 0.98 of the hundred largest scores; their values are good to about as much. `Solution.tolerance` says
    what was asked for. A solver that is given keeps its tolerance.

    Args:
        chain, curvature, solver, of, progress: as for `trace`.
        query: with `reduction="none"`.
        top: examples kept at either end, at most.
        memory: bytes for the queries' vectors of parameters; more queries are solved and scored in blocks, each of
            which takes a pass over the examples.
        out: a folder for the rankings, written whole at the end; one that holds these very rankings is read instead.
            `stagetrace.results.read_rankings` reads it.

    Returns:
        A `Ranking` by stage name, in chain order.

    Raises:
        DescriptionError: as `trace`; or the query is reduced to one number.
        DataError, DifferentiationError, SolveError: as `trace`.
        ResultsError: `out` holds something else, or cannot be written.

    Example:
        >>> import torch
        >>> from stagetrace import Chain, Query, Stage
        >>> from stagetrace.objectives import Regression
        >>> from stagetrace.tracing import rank
        >>> line = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(line.weight, 2.0)
        >>> data = [(torch.ones(1), torch.tensor([y])) for y in (1.0, 2.0, 3.0)]
        >>> fit = Stage("fit", model=line, objective=Regression(), data=data)
        >>> found = rank(Chain(fit), Query([(torch.ones(1), torch.tensor([5.0]))], reduction="none"), top=1)
        >>> found["fit"].harmful.tolist(), found["fit"].helpful.tolist()  # 1 pulls away from 5, and 3 towards it
        ([[0]], [[2]])
    """
    check_count(top, "rank(top=...)")
    check_count(memory, "rank(memory=...), in bytes,")
    if query.reduction != "none":
        refuse(f"rank needs each query example's loss, got the reduction {query.reduction!r}; type reduction='none'")
    check_arguments(chain, query)
    check_options(of, out, progress)
    if out is not None:  # now, and not after the data have been read
        world().first(lambda: holds(Path(out), RECORD), "the rankings' folder")
    bars = progress if not isinstance(progress, bool) else Bars() if progress and world().is_first else Silent()
    chain = chain.refreshed()
    if trained_seeds(chain):
        refuse("rank takes chains that were trained, and this one's stages are trained by the library; type trace(...)")
    curvatures = by_stage(chain, curvature, Auto(), "curvature")
    usual = usual_solvers(chain, curvatures)
    solvers = by_stage(chain, solver, solver_for_order(query), "solver", usual)
    scored = scored_stages(chain, of)
    check_same_job(
        chain,
        query,
        curvature=curvatures,
        solver=solvers,
        of=sorted(scored),
        top=top,
        memory=memory,
        out=out is not None,
    )
    described = dict[str, JSON]()
    if out is not None:
        described = describe(chain, query, curvatures, solvers, scored, parts=False, progress=bars) | {"top": top}
        place = Path(out)
        if world().first(lambda: is_kept(place, described), "the rankings' folder"):
            return _warned(world().first(lambda: read_rankings(place), "the rankings' folder"))
    _ = say_chosen(solvers, usual), checked(chain, query, bars)
    walked = chain.bound_stages[min(map(chain.names.index, scored)) :]
    found: dict[str, list[Ranking]] = {}
    for some in blocks(query, walked, memory):
        responses = {bound.name: response_of(bound, curvatures[bound.name], solvers[bound.name]) for bound in walked}
        for stage, ranking in _ranked(chain, some, responses, scored, top, bars).items():
            found.setdefault(stage, []).append(ranking)
    rankings = {name: joined(found[name]) for name in chain.names if name in found}
    if out is not None:
        world().first(lambda: write_rankings(rankings, Path(out), described), "the rankings' folder")
    return rankings


def _warned(found: dict[str, Ranking]) -> dict[str, Ranking]:
    """The rankings that were read, after the warnings of their solves."""
    for stage, ranking in found.items():
        for warning in () if ranking.solution is None else solution_warnings(stage, ranking.solution):
            warnings.warn(warning, stacklevel=4)
    return found


def _ranked(
    chain: Chain, query: Query, responses: Mapping[str, Response], scored: set[str], top: int, bars: Progress
) -> dict[str, Ranking]:
    """The rankings of each stage's examples, for some of the queries."""
    gradient = query.gradient(chain.last, bars)
    check_not_flat(gradient, query)
    found: dict[str, Ranking] = {}
    for bound, step in backward_pass(chain, responses, gradient, lambda _: None, bars):
        for warning in solution_warnings(bound.name, step.solution):
            warnings.warn(warning, stacklevel=4)
        if bound.name in scored:
            parts = step.scorer(parts=False, rows=query.rows).run(lambda _: None, _forget, bars)
            value = step.solution.value
            told = replace(step.solution, value=value.new_zeros(0, value.shape[1]))
            ranking = ranked(bound.name, parts, top).with_ids(bound.stage.example_ids)
            found[bound.name] = replace(ranking, solution=told)
        if scored <= set(found):
            break
    return found


def solver_for_order(query: Query) -> Lanczos:
    """The solver of a ranking where none is given: as exact as the order needs."""
    return Lanczos(rtol=RANKING) if (query.rows or 1) >= MANY else Lanczos()


def _forget(number: int, part: Part) -> None:
    """A part that is kept nowhere."""
    del number, part
