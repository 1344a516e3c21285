"""The walk back: a query's gradient, and what each stage's response makes of it, the last stage first."""

import time
from collections.abc import Callable, Iterator, Mapping
from math import isnan
from typing import final

from stagetrace.errors import ConvergenceWarning, CurvatureWarning, StagetraceWarning
from stagetrace.progress import Advance, Progress
from stagetrace.progress.task import clock
from stagetrace.solvers.base import Solution
from stagetrace.stages.chain import Chain
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.problem import Problem
from stagetrace.tracing.responses.response import Back, Response

Kept = Callable[[str], Solution | None]
"""A stage's solution from an earlier, interrupted run, if there is one."""


def walk_back(
    chain: Chain, responses: Mapping[str, Response], gradient: Gradient, kept: Kept, progress: Progress
) -> Iterator[tuple[Problem, Back]]:
    """Yield each stage with what its response makes of the query's gradient, last stage first.

    Algorithm 1 of Chen et al. (2020), for any number of stages. The gradient at the previous stage is computed only
    once the next one is asked for.

    Args:
        responses: by the stages' names, as far back as is walked.
        gradient: the query's, at the last stage.
    """
    for problem in reversed(chain):
        back = responses[problem.name].back(gradient, kept(problem.name), progress)
        yield problem, back
        if problem.previous is not None:
            gradient = back.to_previous(chain[problem.previous.name])


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
