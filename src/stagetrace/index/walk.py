"""From a query to its adjoint at each indexed stage: the walk back of `trace`, without the scoring."""

import warnings
from collections.abc import Collection, Iterator, Mapping

from stagetrace.curvature.choices import Curvature
from stagetrace.errors import refuse
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solution, Solver
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.tracing.backward import backward_pass, solution_warnings
from stagetrace.tracing.query import Query
from stagetrace.tracing.responses.implicit import Implicit
from stagetrace.tracing.trace import check_not_flat, response_of

__all__ = ["adjoints", "indexable"]


def indexable(chain: Chain, of: Collection[str] | None) -> list[str]:
    """The stages whose examples can be indexed: those whose scores are one product with each example's gradient.

    of: the names that were asked for; None asks for every stage that can be.

    Raises:
        DescriptionError: a stage that was asked for cannot be, or none can.
    """
    can = [bound.name for bound in chain if bound.recording is None]
    for name in of or ():
        if name not in can:
            refuse(
                f"stage '{name}' is differentiated through its recorded steps: its scores are no products with one "
                "gradient of each example, so it cannot be indexed; score it: stagetrace score TARGET --out DIR "
                f"--of {name}"
            )
    found = can if of is None else [name for name in can if name in of]
    if not found:
        refuse(
            "every stage of this chain is differentiated through its recorded steps, so none can be indexed; score "
            "them: stagetrace score TARGET --out DIR"
        )
    return found


def adjoints(
    chain: Chain,
    query: Query,
    stages: Collection[str],
    curvatures: Mapping[str, Curvature],
    solvers: Mapping[str, Solver],
    progress: Progress,
) -> Iterator[tuple[BoundStage, Solution]]:
    """Each of the stages, the last one first, with its solution: the adjoints `[P, k]`, a column for each query.

    Raises:
        DescriptionError: a stage's scores are sums over several segments of its training.
        DataError, SolveError: as `trace`.
    """
    walked = chain.bound_stages[min(map(chain.names.index, stages)) :]
    responses = {bound.name: response_of(bound, curvatures[bound.name], solvers[bound.name]) for bound in walked}
    for name in stages:
        if not isinstance(responses[name], Implicit):
            refuse(
                f"stage '{name}': {solvers[name]} gives scores that are sums over segments of its training, not one "
                f"product with each example's gradient; give solver={{'{name}': Lanczos()}} (--solve {name}=lanczos)"
            )
    gradient = query.gradient(chain.last, progress)
    check_not_flat(gradient, query)
    left = set(stages)
    for bound, step in backward_pass(chain, responses, gradient, lambda _: None, progress):
        for warning in solution_warnings(bound.name, step.solution):
            warnings.warn(warning, stacklevel=4)
        if bound.name in left:
            yield bound, step.solution
            left.remove(bound.name)
        if not left:
            return
