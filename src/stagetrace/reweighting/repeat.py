"""A chain's recorded training, repeated with weights on the examples of its stages and differentiated at these."""

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import SolveError, StagetraceWarning
from stagetrace.progress import Progress
from stagetrace.recording.recorded import Recorded
from stagetrace.replay.backward import Reverse, Sensitivities
from stagetrace.replay.course import Course
from stagetrace.replay.examples import check_examples
from stagetrace.replay.forward import Point
from stagetrace.replay.other_order import OtherOrder
from stagetrace.replay.weighted import Source, Weighted
from stagetrace.reweighting.balance import Weights
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.gradient import Gradient
from stagetrace.stages.revalued import with_values
from stagetrace.tracing.pull_back import handed_back
from stagetrace.tracing.query import Query
from stagetrace.validation.fits.rerun import after, changed_buffers


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """What a chain's training with weights led to.

    chain: as that training left it; stages before the first that is trained again are as they were.
    trained: those that were trained again. folder: of their states; `discard` deletes it.
    """

    chain: Chain
    trained: Mapping[str, Weighted]
    folder: Path

    def loss(self, query: Query) -> float:
        """The query loss."""
        return float(query.loss(self.chain.last))

    def slopes(self, query: Query, progress: Progress) -> Weights:
        """d(query loss)/d(weight of each example's loss), at the weights that it was trained with."""
        gradient, found = query.gradient(self.chain.last, progress), dict[str, Tensor]()
        for bound in reversed([self.chain[name] for name in self.trained]):
            answer = _backwards(bound, self.trained[bound.name], gradient, progress)
            found[bound.name] = answer.weights.squeeze(1)
            if bound.previous is not None and bound.previous.name in self.trained:
                start = Gradient(answer.trained, gradient.inherited + answer.inherited, answer.statistics)
                gradient = handed_back(bound, self.chain[bound.previous.name], start)
        return found

    def discard(self) -> None:
        """Delete the states that were kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


@final
@dataclass(frozen=True, eq=False)
class Repeat:
    """One training that is repeated: the recorded one, or the same with its batches in another order.

    name: in words. chain: as it was left. courses: of each stage that is trained again, by its name, first to last.
    sources: where their steps are read.
    """

    name: str
    chain: Chain
    courses: Mapping[str, Course]
    sources: Mapping[str, Source]

    @staticmethod
    def of(name: str, chain: Chain, first: str) -> "Repeat":
        """The recorded training of a stage and all later ones, replayed once.

        Raises:
            DescriptionError, DataError, ResultsError: a recording is not that of its stage, or does not come out as
                recorded.
        """
        courses = dict[str, Course]()
        for bound in chain.bound_stages[chain.names.index(first) :]:
            recorded = bound.recording
            assert isinstance(recorded, Recorded)
            courses[bound.name] = course = Course.of(bound, recorded)
            check_examples(bound, course.recorded)
            if course.agreement.odd_scales:
                warnings.warn(
                    f"{bound.stage.where}: in {len(course.agreement.odd_scales):,} recorded steps losses went backward "
                    "times a factor that is no one over a whole number; it is taken for a constant, whatever the "
                    "weights are",
                    StagetraceWarning,
                    stacklevel=5,
                )
        return Repeat(name, chain, courses, {stage: course.recorded for stage, course in courses.items()})

    def reordered(self, name: str, seed: int) -> "Repeat":
        """The same training with its batches in an order drawn by the seed.

        Raises:
            DescriptionError: a stage's batches cannot be made in another order; see `OtherOrder`.
        """
        sources = {stage: OtherOrder(self.chain[stage], course).drawn(seed) for stage, course in self.courses.items()}
        return Repeat(name, self.chain, self.courses, sources)

    def train(self, weights: Weights, folder: Path, progress: Progress) -> Outcome:
        """Train again. weights: of the stages that have others than 1. folder: a new one, for the states.

        Raises:
            SolveError: training diverged.
        """
        first = next(iter(self.courses))
        stages, trained = list(self.chain.stages[: self.chain.names.index(first)]), dict[str, Weighted]()
        for name, course in self.courses.items():
            bound = self.chain[name]
            start = Point.of(course.recorded.state(course.recorded.states[0]), bound.trained_values)
            kept = bound.inherited_values
            if trained:
                left = stages[-1].model
                start, kept = after(bound, start, {**dict(left.named_parameters()), **dict(left.named_buffers())})
            given = weights.get(name, torch.ones(len(bound.stage.examples), dtype=torch.float64))
            what, place = f"training stage '{name}' with weights, {self.name}", folder / str(len(trained))
            with progress.task(what, course.recorded.steps, "steps") as advance:
                done = Weighted.of(bound, course, self.sources[name], start, kept, given, place, advance)
            if not all(bool(torch.isfinite(value).all()) for value in done.end.values.values()):
                raise SolveError(f"{bound.stage.where}: its training with other weights diverged")
            moved = {each: done.end.buffers[each] for each in changed_buffers(bound, [done.end])}
            left = done.end.left(averaged=course.recorded.averaged)
            stages.append(with_values(bound.stage, {**kept, **left, **moved}))
            trained[name] = done
        return Outcome(Chain(*stages), trained, folder)


def _backwards(bound: BoundStage, weighted: Weighted, gradient: Gradient, progress: Progress) -> Sensitivities:
    recorded = weighted.course.recorded
    reverse = Reverse(bound, recorded, gradient, bound.replay_memory, weighted)
    with (
        torch.random.fork_rng(),
        progress.task(f"differentiating stage '{bound.name}'", recorded.steps, "steps") as advance,
    ):
        for block in reversed(recorded.blocks):
            reverse.block(block)
            advance(len(block))
    return reverse.result()
