"""The response of a stage at a minimum of its objective, by the implicit function theorem."""

from dataclasses import replace
from functools import partial
from typing import final

from stagetrace.curvature.auto import coupling_indices, describe_subset
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.cost import Cost
from stagetrace.curvature.operator import LinearOperator
from stagetrace.curvature.processes import sharing
from stagetrace.errors import SolveError
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solution, Solver, Status, solve
from stagetrace.solvers.settings import step_limit
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.coverage import Coverage
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.shards import whole_vectors
from stagetrace.tracing.backward import SolveProgress
from stagetrace.tracing.pull_back import pull_back
from stagetrace.tracing.responses.response import BackwardStep
from stagetrace.tracing.responses.shortfall import shortfall
from stagetrace.tracing.score import Scorer
from stagetrace.tracing.sharded import ShardedScorer


@final
class Implicit:
    """A stage that ended at a minimum, `dF/dTheta = 0`, whatever the weights and whatever it started from.

    Theta are its trained parameters, W those it inherited. With H the curvature of its objective F in Theta, the
    stationarity gives (Chen et al. 2020, eq. 9-15)

        dTheta / d epsilon_i = -H^-1 (gradient of loss_i),    dTheta / dW = -H^-1 (d2F / dTheta dW).

    Both need the query's gradient g as the adjoint `lambda = H^-1 g` only: the score of example i is
    `-(gradient of loss_i) . lambda`, and `pull_back` makes of it the gradient at the stage before.

    Args:
        bound: the stage at its place in a chain.
        curvature: what stands for H; solver: how it is inverted.

    Raises:
        DescriptionError: the curvature does not fit the stage.
    """

    def __init__(self, bound: BoundStage, curvature: Curvature, solver: Solver) -> None:
        self.bound, self.curvature, self.solver = bound, curvature, solver
        self._operator: LinearOperator | None = curvature.operator(bound)

    def cost(self) -> Cost | None:
        return None if self._operator is None else self._operator.cost()

    def backward(self, gradient: Gradient, known: Solution | None, progress: Progress) -> BackwardStep:
        """See `Response`; the operator is let go, with what it keeps in memory, once the stage is solved."""
        bound, shapes = self.bound, self.bound.risk.evaluation.shapes
        whole = known or self._solve(gradient, progress)
        self._operator = None
        adjoint = whole.value.to(bound.trained.device)
        if shapes is not None and known is not None:  # as it was written
            adjoint = sharing(bound.risk).taken(adjoint)
        elif shapes is not None:
            columns = whole.value.reshape(len(adjoint), -1)
            value = whole_vectors(columns, [shapes[name] for name in bound.trained.names])
            whole = replace(whole, value=value.reshape(-1, *adjoint.shape[1:]))
        indices = coupling_indices(self.curvature, bound, adjoint.shape[1])

        def to_previous(previous: BoundStage) -> Gradient:
            return pull_back(bound, previous, adjoint, gradient, indices, progress)

        scorer = Scorer.of if shapes is None else ShardedScorer
        solution = replace(whole, value=adjoint) if shapes is None else whole
        return BackwardStep(solution, partial(scorer, bound.risk, adjoint), to_previous)

    def _solve(self, gradient: Gradient, progress: Progress) -> Solution:
        bound, solver = self.bound, self.solver
        unit = "products" if gradient.trained.shape[1] == 1 else "steps"
        try:
            operator = self._operator or self.curvature.operator(bound)
            with progress.task(f"solving stage '{bound.name}'", None, unit) as advance:
                solution = _usable(
                    solve(operator, gradient.trained, solver, SolveProgress(advance, step_limit(solver)))
                )
            left_out = describe_subset(self.curvature, bound)
            said = (*operator.notes, *shortfall(operator, gradient.trained, solution))
            return replace(solution, notes=(*solution.notes, *said, *filter(None, [left_out])))
        except SolveError as cause:
            raise SolveError(
                f"while solving {bound.stage.where} ({Coverage.of(bound).trained:,} parameters, {solver}): {cause}"
            ) from cause


def _usable(solution: Solution) -> Solution:
    """The solution, unless there is none to go on with.

    Raises:
        SolveError: the solve diverged.
    """
    if solution.status is Status.DIVERGED:
        raise SolveError(f"{solution.system} diverged after {solution.products} products; {'; '.join(solution.notes)}")
    return solution
