"""The walk back: a query's gradient, one inverse-curvature product per stage, one step through each link."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isnan
from typing import final

from stagetrace.curvature.auto import coupled, subset_in_words
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import ConvergenceWarning, CurvatureWarning, SolveError, StagetraceWarning
from stagetrace.progress import Advance, Progress
from stagetrace.progress.task import clock
from stagetrace.solvers.base import Solution, Solver, Status, solve
from stagetrace.solvers.settings import most_steps
from stagetrace.stages.chain import Chain
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.problem import Problem
from stagetrace.tracing.pull_back import pull_back

Kept = Callable[[str], Solution | None]
"""A stage's solution from an earlier, interrupted run, if there is one."""


@final
@dataclass(frozen=True)
class Walk:
    """How to walk: each stage's curvature and solver, by its name.

    operators: of the stages still to be solved; each is let go, with what it keeps in memory, once its stage is.
    """

    chain: Chain
    curvature: Mapping[str, Curvature]
    operators: dict[str, LinearOperator]
    solver: Mapping[str, Solver]
    progress: Progress

    def back(self, gradient: Gradient, kept: Kept) -> Iterator[tuple[Problem, Solution]]:
        """Yield each stage with its adjoint, last stage first.

        The adjoint `lambda` solves `curvature lambda = gradient` in the stage's own parameters; an example's score
        there is `-(gradient of its loss) . lambda`, whichever stage it is (Chen et al. 2020, eq. 11 and 15).
        """
        for problem in reversed(self.chain):
            solution = kept(problem.name) or self._solve(problem, gradient)
            adjoint = solution.value.to(problem.own.device)
            yield problem, replace(solution, value=adjoint)
            if problem.previous is not None:
                previous = self.chain[problem.previous.name]
                indices = coupled(self.curvature[problem.name], problem, adjoint.shape[1])
                gradient = pull_back(problem, previous, adjoint, gradient, indices, self.progress)

    def _solve(self, problem: Problem, gradient: Gradient) -> Solution:
        solver = self.solver[problem.name]
        unit = "products" if gradient.own.shape[1] == 1 else "steps"
        try:
            operator = self.operators.pop(problem.name)
            with self.progress.task(f"solving stage '{problem.name}'", None, unit) as advance:
                solution = _usable(solve(operator, gradient.own, solver, Told(advance, most_steps(solver))))
            left_out = subset_in_words(self.curvature[problem.name], problem)
            return replace(solution, notes=(*solution.notes, *filter(None, [left_out])))
        except SolveError as cause:
            raise SolveError(
                f"while solving {problem.stage.where} ({problem.own.size:,} parameters, {solver}): {cause}"
            ) from cause


@final
class Told:
    """The report of a solve, handed on to its task: products done, the residual, and how long it can still take."""

    def __init__(self, advance: Advance, most: int | None) -> None:
        self._advance, self._most, self._started = advance, most, time.perf_counter()
        self._done = self._before = 0

    def __call__(self, step: int, residual: float, /) -> None:
        note = "looking at the spectrum" if isnan(residual) else f"residual {residual:.1e}"
        if isnan(residual):
            self._before = step
        elif self._most is not None and step - self._before < self._most:
            left = (time.perf_counter() - self._started) / step * (self._most - step + self._before)
            note += f", < {clock(left)} left"
        self._advance(step - self._done, note=note)
        self._done = step


def concerns(stage: str, solution: Solution) -> list[StagetraceWarning]:
    """What is not as it should be about a solution: to be said loudly each time it is used."""
    found: list[StagetraceWarning] = []
    notes = f" ({'; '.join(solution.notes)})" if solution.notes else ""
    if not solution.converged:
        text = (
            f"stage '{stage}': {solution.system} {solution.status.value}: relative residual "
            f"{solution.relative_residual:.1e}, asked for {solution.tolerance:.1e}, after {solution.products} products;"
            f" raise max_steps or damping, or loosen rtol{notes}"
        )
        found.append(ConvergenceWarning(text))
    spectrum = solution.spectrum
    if spectrum is not None and spectrum.smallest < -1e-5 * max(abs(spectrum.largest), abs(spectrum.smallest)):
        replaced = solution.system.matrix == "G"
        what = "Gauss-Newton was inverted in its place;" if replaced else "use GaussNewton() or more damping, or"
        text = (
            f"stage '{stage}': the curvature has negative eigenvalues (down to {spectrum.smallest:.2e}, largest "
            f"{spectrum.largest:.2e}), so the stage is not at a minimum; {what} train it further, and read its scores "
            "with care"
        )
        found.append(CurvatureWarning(text))
    return found


def _usable(solution: Solution) -> Solution:
    """The solution, unless there is none to go on with.

    Raises:
        SolveError: the solve diverged.
    """
    if solution.status is Status.DIVERGED:
        raise SolveError(f"{solution.system} diverged after {solution.products} products; {'; '.join(solution.notes)}")
    return solution
