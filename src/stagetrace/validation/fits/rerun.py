"""The recorded training repeated: the truth that the derivative through it predicts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from stagetrace.errors import SolveError, refuse
from stagetrace.recording.link import load_recording
from stagetrace.recording.recorded import Recorded
from stagetrace.recording.step import Step
from stagetrace.replay.course import Course, Factors
from stagetrace.replay.fitting import fitting
from stagetrace.replay.forward import Point
from stagetrace.replay.other_order import OtherOrder
from stagetrace.replay.training import Training
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.buffers import shared_buffers
from stagetrace.stages.links.computed import by_name
from stagetrace.stages.space import Params
from stagetrace.validation.fits.fit import Copies, Fit, all_values, one_copy, stacked
from stagetrace.validation.rebinding import values_from_previous


@final
@dataclass(frozen=True)
class Rerun(Fit):
    """The training that was recorded, step by step again, each example's loss multiplied with its weight.

    Batches, random masks, learning rates, clipping, the optimiser's state at the start and what the losses were divided
    by are the recorded ones: a weight of 0 takes an example's loss out and leaves the divisor. It begins where the
    recorded training began. At a later stage what is shared begins at what the stage before, trained again, left;
    what is new there (a new head) at its recorded initial values. With all weights 1 and nothing changed before, it
    ends where the recorded training ended: this is tried first, and a training that does not is refused.

    `Unrolled` is the exact derivative of this training, so scores and effects must agree as the part that is taken out
    goes to zero.

    Args:
        order: "recorded", or "other": batches of as many examples in an order drawn by the seed, made by the stage's
            own data set and collation, with random masks drawn by the seed. It says how far effects hang on the order.
        recording: as for `Unrolled`; None takes that of the stage's link.

    Raises:
        DescriptionError: there is no recording, or it is not that of the stage.
        DataError, ResultsError: repeating it as it was does not come out as recorded.
        SolveError: a training with other weights diverged.
    """

    order: Literal["recorded", "other"] = "recorded"
    recording: "Recorded | str | Path | Sequence[Recorded | str | Path] | None" = None
    is_stochastic: bool = field(default=False, init=False, repr=False)
    _known: dict[int, tuple[BoundStage, Course]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.order not in ("recorded", "other"):
            refuse(f"Rerun: order must be 'recorded' or 'other', got {self.order!r}")
        if self.recording is not None:
            object.__setattr__(self, "recording", load_recording(self.recording))
        object.__setattr__(self, "is_stochastic", self.order == "other")

    def __getstate__(self) -> dict[str, object]:
        """Its settings: what was replayed on the way does not make it another fit."""
        return {**vars(self), "_known": {}}

    def check(self, bound: BoundStage, *, follows: bool) -> None:
        del follows
        fitting(bound, self._recording(bound))

    def prepare(self, bound: BoundStage) -> None:
        """Repeat the training as it was, once, before processes share the work."""
        course = self._course(bound)
        if self.order == "other":
            OtherOrder(bound, course)

    def __call__(self, bound: BoundStage, weights: Tensor, previous: Copies | None, seed: int) -> Copies:
        course = self._course(bound)
        start = course.recorded.state(course.recorded.states[0])
        begun = Point.of(start, bound.trained_values)
        starts = [
            (begun, bound.inherited_values) if previous is None else after(bound, begun, one_copy(previous, place))
            for place in range(len(weights))
        ]
        ends = course.run(Training(bound), self._steps(bound, course, seed), starts, weights)
        for end in ends:
            if not all(bool(torch.isfinite(value).all()) for value in end.values.values()):
                raise SolveError(
                    f"{bound.stage.where}: its recorded training, repeated with other weights, diverged (a parameter "
                    f"is not finite after {course.recorded.steps:,} steps); take out less: by=0.1"
                )
        changed, averaged = changed_buffers(bound, ends), course.recorded.averaged
        known = all_values(bound)
        return stacked(
            [
                {**known, **kept, **end.left(averaged=averaged), **{name: end.buffers[name] for name in changed}}
                for end, (_, kept) in zip(ends, starts, strict=True)
            ]
        )

    def _steps(self, bound: BoundStage, course: Course, seed: int) -> Iterator[tuple[Step, Factors]]:
        return course.steps() if self.order == "recorded" else OtherOrder(bound, course).steps(seed)

    def _course(self, bound: BoundStage) -> Course:
        if id(bound) not in self._known:
            self._known[id(bound)] = bound, Course.of(bound, self._recording(bound))
        return self._known[id(bound)][1]

    def _recording(self, bound: BoundStage) -> Recorded:
        found = self.recording or bound.recording
        if not isinstance(found, Recorded):
            refuse(
                f"{bound.stage.where}: there is no recorded training to repeat; give link=Unrolled(shared, "
                "'runs/.../recording') or Rerun(recording='runs/.../recording'), or another fit: Steps(...), Resolve()"
            )
        return found


def recorded_fit(bound: BoundStage) -> Fit | None:
    """The training that the stage's link differentiates: its recording repeated, or steps that the library takes."""
    if isinstance(bound.recording, Fit):
        return bound.recording
    return None if bound.recording is None else Rerun()


def after(bound: BoundStage, begun: Point, previous: Mapping[str, Tensor]) -> tuple[Point, Params]:
    """Where a copy begins after the stage before was trained again, and what it keeps.

    Running statistics come along where they did in the recorded training.
    """
    assert bound.previous is not None
    over = values_from_previous(bound, previous, anchored=True)
    moved = {name: value for name, value in over.items() if name in bound.anchored_to}
    kept = {name: value for name, value in over.items() if name in bound.inherited_from}
    buffers = dict(begun.buffers)
    if bound.stage.link is not None:
        left = dict(bound.previous.model.named_buffers())
        pairs = by_name(bound.inherited_from | bound.anchored_to)
        shared = shared_buffers(bound.stage.link, pairs, bound.stage.model, bound.previous.model)
        for name, other in shared.items():
            if other in previous and torch.equal(begun.buffers[name], left[other].to(begun.buffers[name])):
                buffers[name] = previous[other].to(begun.buffers[name])
    # an average that began as a copy of the parameters does so again
    copies = {
        name: moved.get(name, a) if torch.equal(a, begun.values[name]) else a for name, a in begun.average.items()
    }
    return Point({**begun.values, **moved}, buffers, begun.slots, copies), kept


def changed_buffers(bound: BoundStage, ends: Sequence[Point]) -> list[str]:
    """The buffers (running statistics) that some copy has not left as they are in the stage's model."""
    known = dict(bound.stage.model.named_buffers())
    return [
        name
        for name in ends[0].buffers
        if any(not torch.equal(end.buffers[name], known[name].detach()) for end in ends)
    ]
