"""A whole recorded training, from its start to its end: replayed as it was, then run again with other weights."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import StagetraceWarning
from stagetrace.recording.recorded import Recorded
from stagetrace.recording.step import Step
from stagetrace.replay.agreement import TOLERANCES, Agreement
from stagetrace.replay.fitting import fitting
from stagetrace.replay.forward import Point, stepped
from stagetrace.replay.step import Scale, slopes
from stagetrace.replay.training import Training
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.space import Params

_CLOSE = 1e-4
"""How near to one another factors must be to be one, relative to their size."""

Factors = Sequence[float]
"""What the summed losses of each of a step's batches were multiplied by: see `Scale`."""


@final
@dataclass(frozen=True, eq=False)
class Course:
    """A recorded training that came out as recorded, from its start to its end in one go.

    factors: of each step. ids: the examples of each batch, in order, step by step. agreement: with the recording.
    """

    recorded: Recorded
    factors: Sequence[Factors]
    ids: Sequence[Sequence[Sequence[int]]]
    agreement: Agreement

    @staticmethod
    def of(bound: BoundStage, recorded: Recorded) -> "Course":
        """Replay the training of a stage, all weights 1.

        Raises:
            DescriptionError, ResultsError: the recording is not that of the stage; see `fitting`.
            DataError: a step, or the end, does not come out as recorded.
        """
        recorded = fitting(bound, recorded)
        agreement = Agreement(recorded, bound.stage.where, TOLERANCES[bound.trained.dtype])
        training, scales = Training(bound), list[Sequence[Scale]]()
        ids = list[Sequence[Sequence[int]]]()
        point = Point.of(recorded.state(recorded.states[0]), bound.trained_values)
        with torch.random.fork_rng():
            for block in recorded.blocks:
                for number, step in zip(block, recorded.read(block), strict=True):
                    training.put(point.buffers)
                    found = slopes(training, point.values, bound.inherited_values, step)
                    agreement.check_step(number, step, found, point.values)
                    scales.append(found.scales)
                    ids.append([micro.ids for micro in step.micros])
                    point = stepped(recorded, point, step, found.clipped, training.buffers)
                agreement.check_end(block, recorded.state(block.start), recorded.state(block.stop), point)
        return Course(recorded, _factors(bound.stage.where, scales, ids), ids, agreement)

    def steps(self) -> Iterator[tuple[Step, Factors]]:
        """The steps as recorded, each with the factors of its batches."""
        for block in self.recorded.blocks:
            yield from zip(self.recorded.read(block), self.factors[block.start : block.stop], strict=True)

    def run(
        self,
        training: Training,
        steps: Iterator[tuple[Step, Factors]],
        starts: Sequence[tuple[Point, Params]],
        weights: Tensor,
    ) -> list[Point]:
        """Train copies, step by step beside one another: each batch is read once, and each copy draws the same masks.

        starts: of each copy, where it begins and what it keeps. weights: `[copies, n]`, multiplied with the losses.
        """
        points, kept = [point for point, _ in starts], [inherited for _, inherited in starts]
        with torch.random.fork_rng():
            for step, factors in steps:
                for place, point in enumerate(points):
                    training.put(point.buffers)
                    found = slopes(training, point.values, kept[place], step, weights[place], factors)
                    points[place] = stepped(self.recorded, point, step, found.clipped, training.buffers)
        return points


def _factors(where: str, scales: Sequence[Sequence[Scale]], ids: Sequence[Sequence[Sequence[int]]]) -> list[Factors]:
    """The factor of every batch. Where its loss was 0 it follows from the others: with weights it need not be 0.

    Either all batches have the same one, as sums do, or the same one times the number of their examples, as means do;
    where both are so the mean is taken if it is one over a whole number, of accumulated batches.
    """
    batches = [
        (scale, len(examples))
        for step, batch_ids in zip(scales, ids, strict=True)
        for scale, examples in zip(step, batch_ids, strict=True)
    ]
    sums = [scale.factor for scale, _ in batches if scale.told]
    means = [scale.factor * n for scale, n in batches if scale.told]
    untold = len(batches) - len(sums)
    if not untold or not sums:
        return [tuple(scale.factor for scale in step) for step in scales]
    by_mean, by_sum = _alike(means), _alike(sums)
    if not (by_mean or by_sum):
        warnings.warn(
            f"{where}: the losses of {untold:,} batches were 0, so that what they were divided by cannot be told, and "
            "the others were divided by various numbers; theirs is taken to be the number of their examples. Where "
            "weights make such a loss other than 0, the repeated training may be another one",
            StagetraceWarning,
            stacklevel=2,
        )
    mean = by_mean and not (by_sum and abs(1 / means[0] - round(1 / means[0])) > _CLOSE)

    def factor(scale: Scale, n: int) -> float:
        if scale.told or not (by_mean or by_sum):
            return scale.factor
        return means[0] / n if mean else sums[0]

    return [
        tuple(factor(scale, len(examples)) for scale, examples in zip(step, batch_ids, strict=True))
        for step, batch_ids in zip(scales, ids, strict=True)
    ]


def _alike(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= _CLOSE * abs(max(values, key=abs))
