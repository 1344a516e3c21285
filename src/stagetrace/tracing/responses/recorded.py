"""The response of a stage whose training was recorded, by the chain rule through its steps."""

from functools import partial
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.cost import Cost
from stagetrace.progress import Progress
from stagetrace.recording.recorded import Recorded
from stagetrace.replay.backward import Reverse
from stagetrace.replay.fitting import fitting
from stagetrace.solvers.base import Solution, Status
from stagetrace.solvers.system import Steps
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.problem import Problem
from stagetrace.tracing.pull_back import handed_back
from stagetrace.tracing.responses.response import Back
from stagetrace.tracing.score import WeightScorer


@final
class Replayed:
    """A stage that ended where its recorded steps led: no minimum is assumed, and nothing is solved.

    With `w_i` the weight of example i's loss in every batch that it was in, `n` of them and q the query loss, the steps
    run backwards give `dq/dw_i`, the derivative at the parameters that the training started from, and what goes to
    parameters that it kept. An example's score is `n dq/dw_i`: the derivative along `mean loss + epsilon loss_i`.

    Raises:
        DescriptionError, ResultsError: the recording is not that of this stage; see `fitting`.
    """

    def __init__(self, problem: Problem, recorded: Recorded) -> None:
        self.problem = problem
        self.recorded = fitting(problem, recorded)

    def cost(self) -> Cost | None:
        return None

    def back(self, gradient: Gradient, known: Solution | None, progress: Progress) -> Back:
        """See `Response`."""
        solution, problem = known or self._run(gradient, progress), self.problem
        own, inherited, weights = solution.value.split(
            (problem.own.size, problem.inherited.size, len(problem.stage.examples))
        )

        def to_previous(previous: Problem) -> Gradient:
            def placed(value: Tensor) -> Tensor:
                return value.to(problem.own.device, problem.own.dtype)

            return handed_back(problem, previous, gradient.inherited + placed(inherited), placed(own))

        return Back(solution, partial(WeightScorer, problem.risk, weights * len(weights)), to_previous)

    def _run(self, gradient: Gradient, progress: Progress) -> Solution:
        problem, recorded = self.problem, self.recorded
        with (
            torch.random.fork_rng(),
            progress.task(f"replaying stage '{problem.name}'", recorded.steps, "steps") as advance,
        ):
            reverse = Reverse(problem, recorded, gradient.own)
            for block in reversed(recorded.blocks):
                reverse.block(block)
                advance(len(block))
        found, columns = reverse.result(), gradient.own.shape[1]
        return Solution(
            value=torch.cat([found.own.cpu().double(), found.inherited.cpu().double(), found.weights]),
            system=Steps(recorded.steps),
            relative_residuals=(found.agreement.worst,) * columns,
            products=recorded.steps * columns,
            checks=recorded.steps,
            steps=recorded.steps,
            statuses=(Status.CONVERGED,) * columns,
            tolerance=found.agreement.tolerance,
            notes=found.agreement.notes,
        )
