"""The response of a stage whose training was recorded, by the chain rule through its steps."""

import warnings
from dataclasses import replace
from functools import partial
from typing import final

import torch

from stagetrace.curvature.cost import Cost
from stagetrace.errors import StagetraceWarning, some_names
from stagetrace.parallel import world
from stagetrace.progress import Progress
from stagetrace.recording.recorded import Recorded
from stagetrace.replay.backward import Reverse
from stagetrace.replay.examples import check_examples
from stagetrace.replay.fitting import check_decay, fitting, unlisted
from stagetrace.solvers.base import Solution, Status
from stagetrace.solvers.system import RecordedSteps
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.predicted import Tokens
from stagetrace.tracing.pull_back import handed_back
from stagetrace.tracing.responses.response import BackwardStep
from stagetrace.tracing.score import PROBED, WeightScorer
from stagetrace.tracing.token_losses import check_sums


@final
class Replayed:
    """A stage that ended where its recorded steps led: no minimum is assumed, and nothing is solved.

    With `w_i` the weight of example i's loss in every batch that it was in, `n` of them and q the query loss, the steps
    run backwards give `dq/dw_i`, the derivative at the parameters that the training started from, and what goes to
    parameters that it kept. An example's score is `n dq/dw_i`: the derivative along `mean loss + epsilon loss_i`.

    by_token: take the losses apart into those of tokens, so that each has such a derivative.

    Raises:
        DescriptionError, ResultsError: the recording is not that of this stage; see `fitting`.
    """

    def __init__(self, bound: BoundStage, recorded: Recorded, *, by_token: bool = False) -> None:
        self.bound, self._by_token = bound, by_token
        check_decay(bound)
        self.recorded = fitting(bound, recorded)
        self._remarks = check_examples(bound, self.recorded)
        if by_token:
            check_sums(bound.risk.exact, next(iter(bound.risk.read([range(min(PROBED, len(bound.stage.examples)))]))))
        forgotten = unlisted(bound, self.recorded)
        if forgotten:
            warnings.warn(
                f"{bound.stage.where}: {some_names(forgotten)} started at the values of the stage before, but its link "
                "does not share them, so what reaches the stage before through them is left out; name them too",
                StagetraceWarning,
                stacklevel=5,
            )

    def cost(self) -> Cost | None:
        return None

    def backward(self, gradient: Gradient, known: Solution | None, progress: Progress) -> BackwardStep:
        """See `Response`."""
        bound, replayed = self.bound, None if known is not None else self._run(gradient, progress)
        solution = known if replayed is None else replayed[0]
        assert solution is not None
        sizes = bound.trained.size, bound.inherited.size, bound.statistics.size, len(bound.stage.examples)
        *start, weights = solution.value.split(sizes)

        def to_previous(previous: BoundStage) -> Gradient:
            trained, inherited, statistics = (part.to(bound.trained.device, bound.trained.dtype) for part in start)
            return handed_back(bound, previous, Gradient(trained, gradient.inherited + inherited, statistics))

        def tokens() -> Tokens:
            _, slopes = replayed or self._run(gradient, progress)  # a run that goes on has the solution alone
            assert slopes is not None
            return slopes

        scorer = partial(WeightScorer, bound.risk, weights * len(weights), tokens=tokens if self._by_token else None)
        return BackwardStep(solution, scorer, to_previous)

    def _run(self, gradient: Gradient, progress: Progress) -> tuple[Solution, Tokens | None]:
        """Every process replays the steps, which examples share; of several right-hand sides each takes some back."""
        bound, recorded, columns = self.bound, self.recorded, gradient.trained.shape[1]
        mine = list(world().shard(range(columns))) if columns >= world().size else list(range(columns))
        if len(mine) < columns:
            gradient = Gradient(gradient.trained[:, mine], gradient.inherited[:, mine], gradient.statistics[:, mine])
        with (
            world().together(f"replaying stage '{bound.name}'"),
            torch.random.fork_rng(),
            progress.task(f"replaying stage '{bound.name}'", recorded.steps, "steps") as advance,
        ):
            reverse = Reverse(bound, recorded, gradient, self.bound.replay_memory, by_token=self._by_token)
            for block in reversed(recorded.blocks):
                reverse.block(block)
                advance(len(block))
        found = reverse.result()
        if found.agreement.odd_scales:
            warnings.warn(
                f"{bound.stage.where}: in {len(found.agreement.odd_scales):,} recorded steps losses went backward "
                "times a factor that is no one over a whole number. The gradients' norms agree, so it was constant, or "
                "depends on the parameters; of the latter scores know nothing",
                StagetraceWarning,
                stacklevel=6,
            )
        if found.agreement.faint:
            warnings.warn(f"{bound.stage.where}: {found.agreement.faint}", StagetraceWarning, stacklevel=6)
        parts = found.trained, found.inherited, found.statistics, found.weights
        value, tokens = torch.cat([part.cpu().double() for part in parts]), found.tokens
        if len(mine) < columns:
            value = world().joined(value.mT.contiguous()).mT.contiguous()
            if tokens is not None:
                tokens = replace(tokens, values=world().joined(tokens.values.contiguous()))
        said = [] if world().size == 1 else [f"replayed by each of {world().size} processes: steps are not shared out"]
        solution = Solution(
            value=world().from_rank(0, value),  # the same on all, whatever order a GPU added up in
            system=RecordedSteps(recorded.steps),
            relative_residuals=(found.agreement.worst,) * columns,
            products=recorded.steps * columns,
            checks=recorded.steps,
            steps=recorded.steps,
            statuses=(Status.CONVERGED,) * columns,
            tolerance=found.agreement.tolerance,
            notes=(*found.notes, *self._remarks, *said),
        )
        return solution, tokens
