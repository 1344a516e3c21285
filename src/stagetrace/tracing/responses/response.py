"""What the backward pass asks of a stage, however the stage's outcome is known to follow from weights and start."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final

from stagetrace.curvature.cost import Cost
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solution
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import Gradient
from stagetrace.tracing.score import Scorer, SumScorer, WeightScorer
from stagetrace.tracing.sharded import ShardedScorer


class Response(Protocol):
    """How one stage's outcome answers to the weights of its examples and to what it started from.

    Made for every stage before the backward pass begins, so that what cannot be answered is refused then. It goes with
    any link: what the stage took over is the link's to say.
    """

    def cost(self) -> Cost | None:
        """How it will be computed and what that takes, for `run.json`; None where that is not known."""
        ...

    def backward(self, gradient: Gradient, known: Solution | None, progress: Progress) -> "BackwardStep":
        """What the query's gradient at the stage's outcome makes of its examples and of the stage before.

        gradient: one column for each query. known: the solution, where an interrupted run had found it.

        Raises:
            SolveError: there is no usable answer.
        """
        ...


class MakesScorer(Protocol):
    """`Scorer.of`, told the stage and its adjoint; `WeightScorer`, told its scores."""

    def __call__(self, *, parts: bool, rows: int | None) -> Scorer | SumScorer | WeightScorer | ShardedScorer: ...


@final
@dataclass(frozen=True, eq=False)
class BackwardStep:
    """One stage's step of the backward pass.

    solution: how the answer was found, and the adjoint, on the stage's device.
    scorer: makes what scores the stage's examples; see `Scorer`.
    to_previous: computes the query's gradient at the stage before, when it is called.
    """

    solution: Solution
    scorer: MakesScorer
    to_previous: Callable[[BoundStage], Gradient]
