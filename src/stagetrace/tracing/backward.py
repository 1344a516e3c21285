"""The backward pass: a query's gradient, and what each stage's response makes of it, the last stage first."""

import time
from collections.abc import Callable, Iterator, Mapping
from math import isnan
from typing import final

from stagetrace.errors import ConvergenceWarning, CurvatureWarning, StagetraceWarning
from stagetrace.progress import Advance, Progress
from stagetrace.progress.task import clock
from stagetrace.solvers.base import Solution
from stagetrace.solvers.flow import Flow
from stagetrace.solvers.system import Equation, FlowSegments
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.gradient import Gradient
from stagetrace.tracing.responses.response import BackwardStep, Response

Saved = Callable[[str], Solution | None]
"""A stage's solution from an earlier, interrupted run, if there is one."""


def backward_pass(
    chain: Chain, responses: Mapping[str, Response], gradient: Gradient, saved: Saved, progress: Progress
) -> Iterator[tuple[BoundStage, BackwardStep]]:
    """Yield each stage with what its response makes of the query's gradient, last stage first.

    Algorithm 1 of Chen et al. (2020), for any number of stages. The gradient at the previous stage is computed only
    once the next one is asked for.

    Args:
        responses: by the stages' names, as far back as they are needed.
        gradient: the query's, at the last stage.
    """
    for bound in reversed(chain):
        step = responses[bound.name].backward(gradient, saved(bound.name), progress)
        yield bound, step
        if bound.previous is not None:
            gradient = step.to_previous(chain[bound.previous.name])


@final
class SolveProgress:
    """Reports a solve to its task: products done, the residual, and the time that is left at most."""

    def __init__(self, advance: Advance, most: int | None) -> None:
        self._advance, self._most, self._started = advance, most, time.perf_counter()
        self._done = self._before = 0

    def __call__(self, step: int, residual: float, /) -> None:
        note = "estimating the spectrum" if isnan(residual) else f"residual {residual:.1e}"
        if isnan(residual):
            self._before = step
        elif self._most is not None and step - self._before < self._most:
            left = (time.perf_counter() - self._started) / step * (self._most - step + self._before)
            note += f", < {clock(left)} left"
        self._advance(step - self._done, note=note)
        self._done = step


def solution_warnings(stage: str, solution: Solution) -> list[StagetraceWarning]:
    """The warnings that go with a solution each time it is used: not converged, or negative curvature."""
    found: list[StagetraceWarning] = []
    notes = f" ({'; '.join(solution.notes)})" if solution.notes else ""
    if not solution.converged:
        system = solution.system
        early = isinstance(system, FlowSegments) or (isinstance(system, Equation) and isinstance(system.filter, Flow))
        text = (
            f"stage '{stage}': {solution.system} {solution.status.value}: relative residual "
            f"{solution.relative_residual:.1e}, asked for {solution.tolerance:.1e}, after {solution.products} products;"
            f" raise {'max_steps' if early else 'max_steps or damping'}, or loosen rtol{notes}"
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
