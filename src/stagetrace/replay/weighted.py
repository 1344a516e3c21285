"""A recorded training repeated with weights on its examples, and kept, so that it can be differentiated at these."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, final

import torch
from torch import Tensor

from stagetrace.progress import Advance
from stagetrace.recording.files import read_state, write_state
from stagetrace.recording.step import State, Step
from stagetrace.replay.course import Course
from stagetrace.replay.forward import Point, stepped
from stagetrace.replay.step import Slopes, slopes
from stagetrace.replay.training import Training
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.space import Params


class Source(Protocol):
    """Where steps are read: a recording, or its batches in another order."""

    def read(self, block: range) -> Iterable[Step]:
        """The steps of a block, in order."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Weighted:
    """A training with weights on its examples, read like a recording: `Reverse(..., weighted=...)` differentiates it.

    The loss of a batch is `factor * sum_i w_i loss_i`, with the recorded training's factor, whatever the weights are.

    course: the recorded training that was repeated. source: of its steps.
    weights: float64 `[n]`. folder: of the states, kept before the same steps as in the recording.
    norms: of the gradient that the optimiser saw in each step, and before each clipping. end: where it ended.
    """

    course: Course
    source: Source
    weights: Tensor
    folder: Path
    norms: tuple[tuple[float, tuple[float, ...]], ...]
    end: Point

    @staticmethod
    def of(
        bound: BoundStage,
        course: Course,
        source: Source,
        start: Point,
        kept: Params,
        weights: Tensor,
        folder: Path,
        advance: Advance,
    ) -> "Weighted":
        """Repeat the training. start: where it begins. kept: the inherited parameters. folder: for its states."""
        training, point, norms = Training(bound), start, list[tuple[float, tuple[float, ...]]]()
        recorded = course.recorded
        with torch.random.fork_rng():
            for block in recorded.blocks:
                _keep(folder, block.start, point)
                for number, step in zip(block, source.read(block), strict=True):
                    training.put(point.buffers)
                    found = slopes(training, point.values, kept, step, weights, course.factors[number])
                    norms.append(_norms(found))
                    point = stepped(recorded, point, step, found.clipped, training.buffers)
                advance(len(block))
        _keep(folder, recorded.steps, point)
        return Weighted(course, source, weights, folder, tuple(norms), point)

    def state(self, step: int) -> State:
        """The state that was kept before a step."""
        return read_state(self.folder, step)

    def read(self, block: range) -> list[Step]:
        """The steps of a block, with the gradients' norms as they were with these weights."""
        return [
            replace(step, norm=norm, clips=[replace(clip, norm=n) for clip, n in zip(step.clips, before, strict=True)])
            for step, (norm, before) in zip(self.source.read(block), self.norms[block.start : block.stop], strict=True)
        ]


def _norms(found: Slopes) -> tuple[float, tuple[float, ...]]:
    return found.norm, found.norms


def _keep(folder: Path, step: int, point: Point) -> None:
    write_state(folder, step, State(point.values, point.buffers, point.slots, point.average))
