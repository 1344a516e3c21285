"""The walk back: a query's gradient, one inverse-curvature product per stage, one step through each link."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import final

from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import ConvergenceWarning, CurvatureWarning, SolveError, StagetraceWarning
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solution, Solver, Status
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
                indices = self.curvature[problem.name].indices(problem)
                gradient = pull_back(problem, previous, adjoint, gradient, indices, self.progress)

    def _solve(self, problem: Problem, gradient: Gradient) -> Solution:
        solver = self.solver[problem.name]
        try:
            operator = self.operators.pop(problem.name)
            with self.progress.task(f"solving stage '{problem.name}'", None, "steps") as advance:
                done = 0

                def report(step: int, residual: float, /) -> None:
                    nonlocal done
                    advance(step - done, note=f"residual {residual:.1e}")
                    done = step

                return _usable(solver.prepare(operator).solve(gradient.own, report))
        except SolveError as cause:
            raise SolveError(
                f"while solving {problem.stage.where} ({problem.own.size:,} parameters, {solver}): {cause}"
            ) from cause


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
        handled = solution.system.startswith("(G")
        what = "Gauss-Newton was inverted in its place;" if handled else "use GaussNewton() or more damping, or"
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
