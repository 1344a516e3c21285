"""The response of a stage at a minimum of its objective, by the implicit function theorem."""

from dataclasses import replace
from functools import partial
from typing import final

from stagetrace.curvature.auto import coupled, subset_in_words
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.cost import Cost
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import SolveError
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solution, Solver, Status, solve
from stagetrace.solvers.settings import most_steps
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.problem import Problem
from stagetrace.tracing.pull_back import pull_back
from stagetrace.tracing.responses.response import Back
from stagetrace.tracing.score import Scorer
from stagetrace.tracing.walk import Told


@final
class Implicit:
    """A stage that ended at a minimum: `dF/d own = 0`, whatever the weights and whatever it started from.

    With H the curvature of its objective F in its own parameters, the stationarity gives (Chen et al. 2020, eq. 9-15)

        d own / d epsilon_i = -H^-1 (gradient of loss_i),    d own / d previous = -H^-1 (d2F / d own d previous).

    Both need the query's gradient g as the adjoint `lambda = H^-1 g` only: the score of example i is
    `-(gradient of loss_i) . lambda`, and `pull_back` makes of it the gradient at the stage before.

    Args:
        problem: the stage at its place in a chain.
        curvature: what stands for H; solver: how it is inverted.

    Raises:
        DescriptionError: the curvature does not fit the stage.
    """

    def __init__(self, problem: Problem, curvature: Curvature, solver: Solver) -> None:
        self.problem, self.curvature, self.solver = problem, curvature, solver
        self._operator: LinearOperator | None = curvature.operator(problem)

    def cost(self) -> Cost | None:
        return None if self._operator is None else self._operator.cost()

    def back(self, gradient: Gradient, known: Solution | None, progress: Progress) -> Back:
        """See `Response`; the operator is let go, with what it keeps in memory, once the stage is solved."""
        solution, problem = known or self._solve(gradient, progress), self.problem
        self._operator = None
        adjoint = solution.value.to(problem.own.device)
        indices = coupled(self.curvature, problem, adjoint.shape[1])

        def to_previous(previous: Problem) -> Gradient:
            return pull_back(problem, previous, adjoint, gradient, indices, progress)

        return Back(replace(solution, value=adjoint), partial(Scorer.of, problem.risk, adjoint), to_previous)

    def _solve(self, gradient: Gradient, progress: Progress) -> Solution:
        problem, solver = self.problem, self.solver
        unit = "products" if gradient.own.shape[1] == 1 else "steps"
        try:
            operator = self._operator or self.curvature.operator(problem)
            with progress.task(f"solving stage '{problem.name}'", None, unit) as advance:
                solution = _usable(solve(operator, gradient.own, solver, Told(advance, most_steps(solver))))
            left_out = subset_in_words(self.curvature, problem)
            return replace(solution, notes=(*solution.notes, *filter(None, [left_out])))
        except SolveError as cause:
            raise SolveError(
                f"while solving {problem.stage.where} ({problem.own.size:,} parameters, {solver}): {cause}"
            ) from cause


def _usable(solution: Solution) -> Solution:
    """The solution, unless there is none to go on with.

    Raises:
        SolveError: the solve diverged.
    """
    if solution.status is Status.DIVERGED:
        raise SolveError(f"{solution.system} diverged after {solution.products} products; {'; '.join(solution.notes)}")
    return solution
