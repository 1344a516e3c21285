"""How well a replay agrees with what was recorded, and what disagrees first."""

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import DataError
from stagetrace.recording.recorded import Recorded
from stagetrace.recording.step import State, Step
from stagetrace.replay.causes import Constant, penalty_in_loss
from stagetrace.replay.forward import Point
from stagetrace.replay.step import Slopes, norm_of
from stagetrace.stages.space import Params

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 3e-2}
"""How far a replayed loss or norm may be from the recorded one, relative to it, by the parameters' dtype.

Sums come out in another order (losses are kept apart here); what is wrong in kind is wrong by far more."""

_ODD = (
    "The losses of a batch add up to no whole multiple of the number that went backward. Where a batch's loss is the "
    "mean over its tokens, it is the sum over all of them divided by their number, so that an example's loss must be "
    "the sum over its own tokens: give the stage MaskedToken(reduction='sum') or NextToken(reduction='sum'). "
)

_SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum")
"""What optimisers call the squared gradients by whose root they divide."""

_NOISE = 100.0
"""Gradients below so many times the rounding of the largest one are taken for rounding."""

_MOVED = 10.0
"""The end of a block may be off by this many times the tolerance, relative to how far the block moved."""

_FAINT = 0.3
"""Rounding, relative to the way of a moving average, from which on that is said."""


@final
@dataclass
class Agreement:
    """The largest differences so far, each relative to the recorded number.

    loss: of a batch. norm: of a gradient, before or after it was clipped. end: of the parameters and running statistics
    at the end of a block, relative to how far they had moved in it (rounding of the parameters apart). steps: replayed.
    noisy: entries of parameters that rounding alone moved, which are not compared.
    """

    recorded: Recorded
    where: str
    tolerance: float
    loss: float = 0.0
    norm: float = 0.0
    end: float = 0.0
    steps: int = 0
    odd_scales: set[int] = field(default_factory=set)
    noisy: int = 0
    _constant: Constant = field(default_factory=Constant, repr=False)
    _rounded: float = field(default=0.0, repr=False)
    _went: float = field(default=0.0, repr=False)

    @property
    def faint(self) -> str:
        """What to know of a moving average that went hardly farther than it was rounded; "" where it went."""
        if not self.recorded.averaged or self._rounded <= _FAINT * self._went:
            return ""
        return (
            "the moving average of the parameters went hardly farther than its updates were rounded (rounding is "
            f"{self._rounded / self._went if self._went else math.inf:.2g} times its way), so that its decay could not "
            "be measured and scores may be far too small; train in float64, or trace the trained parameters"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know beside the largest difference."""
        agreed = (
            f"replay agrees with the recording: losses to {self.loss:.1e}, gradient norms to {self.norm:.1e}, ends of "
            f"blocks to {self.end:.1e}"
        )
        said = [agreed]
        if self.odd_scales:
            said.append(
                f"in {len(self.odd_scales):,} steps losses were scaled by no whole divisor (see the gradients' norms)"
            )
        if self.noisy:
            said.append(f"{self.noisy:,} entries of parameters have no gradient but rounding, and are not compared")
        if self.faint:
            said.append(self.faint)
        return tuple(said)

    @property
    def worst(self) -> float:
        return max(self.loss, self.norm, self.end)

    def check_step(self, number: int, step: Step, found: Slopes, trained: Params) -> None:
        """Hold a step's losses and norms against the recorded ones.

        trained: the parameters before it.

        Raises:
            DataError: they differ; says by how much, and what the likely causes are. Or the losses were divided by what
                they themselves came to.
        """
        self.steps += 1
        for micro, scale in zip(step.micros, found.scales, strict=True):
            self.loss = max(self.loss, scale.error)
            if not scale.whole:
                self.odd_scales.add(number)
                if self._constant.seen(micro.loss, scale.factor):
                    self._refuse_constant(micro.loss)
            if micro.autocast is not None:  # from here on: the end of the block holds what this step did
                self.tolerance = max(self.tolerance, TOLERANCES[getattr(torch, micro.autocast[1])])
        for clip, norm in zip(step.clips, found.norms, strict=True):
            if clip.kind != 2:
                raise DataError(
                    f"{self.where}: step {number + 1} was clipped by its norm of order {clip.kind:g}; only norm_type=2 "
                    "has a derivative here"
                )
            self._norm(number, "gradient before it was clipped", clip.norm, norm, step, found, trained)
        self._norm(number, "gradient that the optimiser saw", step.norm, found.norm, step, found, trained)

    def _refuse_constant(self, loss: float) -> None:
        raise DataError(
            f"{self.where}: replaying {self.recorded.folder}: every loss that went backward was {loss:.6g}, whatever "
            "the examples' losses were: each was divided by what it came to (loss / loss.detach()). That number "
            "depends on the parameters, and a derivative through it is not known here; train on the loss itself, with "
            "a learning rate for its size, and record that"
        )

    def _norm(
        self, number: int, what: str, recorded: float, norm: float, step: Step, found: Slopes, trained: Params
    ) -> None:
        off = abs(norm - recorded) / recorded if recorded else norm
        self.norm = max(self.norm, off)
        if off > self.tolerance:
            why = penalty_in_loss(step, found, trained) or (_ODD if number in self.odd_scales else "")
            raise DataError(
                f"{self.where}: replaying {self.recorded.folder}, step {number + 1}: the norm of the {what} comes out "
                f"as {norm:.6g}, recorded was {recorded:.6g} (off by {off:.1e}, allowed {self.tolerance:.0e}). "
                f"{why}{'Other likely' if why else 'Likely'} causes: the stage's objective is not the loss that "
                "was trained (its reduction over tokens, label smoothing, class weights, a further term); random "
                "numbers were drawn between the batch and the forward pass (fused attention kernels of a GPU draw "
                "dropout in their own way: train with attn_implementation='eager', or attention dropout 0); the "
                "gradient was changed in a way that is not recorded (noise, clipping by value, a clip_grad_norm_ "
                "imported by name before the recording began); gradients were not zeroed after a step, or were zeroed "
                "without one (a step that was skipped); one loss was that of several batches of the loader"
            )

    def _driven(self, end: State) -> dict[str, Tensor]:
        """1 where a gradient moved the parameter, 0 where rounding did: nowhere without a second moment.

        A gradient that is zero but for rounding (of the keys' biases in attention, of a bias before a norm) makes steps
        as large as any other once it is divided by its own size: they are noise, and so is where they lead.
        """
        roots = {
            name: slots[kind].abs().sqrt()
            for name, slots in end.slots.items()
            for kind in _SECOND_MOMENTS
            if isinstance(slots.get(kind), Tensor)
        }
        largest = max((float(root.max()) for root in roots.values() if root.numel()), default=0.0)
        # where no gradient ever was, nothing moves by chance
        driven = {
            name: (root > _NOISE * torch.finfo(root.dtype).eps * largest) | (root == 0) for name, root in roots.items()
        }
        self.noisy = max(self.noisy, sum(int((~each).sum()) for each in driven.values()))
        return driven

    def check_end(self, block: range, start: State, end: State, found: Point) -> None:
        """Hold the end of a block against the state that was kept.

        Raises:
            DataError: they differ.
        """
        for what, then, now, before in (
            ("parameters", end.values, found.values, start.values),
            ("buffers", end.buffers, found.buffers, start.buffers),
            ("averaged parameters", end.average, found.average, start.average),
        ):
            names = [name for name, value in then.items() if value.is_floating_point() and name in now]
            driven = {} if what == "buffers" else self._driven(end)
            off = norm_of([driven.get(name, 1) * (now[name].cpu().double() - then[name].double()) for name in names])
            moved = norm_of([driven.get(name, 1) * (then[name].double() - before[name].double()) for name in names])
            size = norm_of([then[name] for name in names])
            rounding = torch.finfo(then[names[0]].dtype).eps * size * len(block) ** 0.5 if names else 0.0
            if before is start.average:
                self._rounded += rounding
                self._went += norm_of([then[name].double() - before[name].double() for name in names])
            share = max(0.0, off - rounding) / moved if moved else float(off > rounding)
            self.end = max(self.end, share)
            if share > _MOVED * self.tolerance:
                raise DataError(
                    f"{self.where}: replaying {self.recorded.folder}, steps {block.start + 1} to {block.stop}: the "
                    f"{what} end {share:.1e} of the way that they moved from where they were recorded (allowed "
                    f"{_MOVED * self.tolerance:.0e}). Likely causes: parameters or running statistics were changed "
                    "outside optimizer.step() (weights tied, averaged or clipped by hand, forward passes in training "
                    "mode that did not go backward), or another version of PyTorch trained"
                )
        if block.stop < self.recorded.steps:  # the last state is where nothing starts from
            self._check_slots(block, end, found)

    def _check_slots(self, block: range, end: State, found: Point) -> None:
        """Hold the optimiser's state at the end of a block against the one that the next block started from."""
        kept, now = (
            {
                (name, slot): value
                for name, held in slots.items()
                if name in found.values  # an optimiser may hold others, which it never moves
                for slot, value in held.items()
                if isinstance(value, Tensor)
            }
            for slots in (end.slots, found.slots)
        )
        off = float(kept.keys() != now.keys())
        for slot in {slot for _, slot in kept} if not off else ():
            pairs = [(v.double(), now[key].cpu().double()) for key, v in kept.items() if key[1] == slot]
            gap, size = norm_of([one - other for one, other in pairs]), norm_of([one for one, _ in pairs])
            off = max(off, gap / size if size else gap)
        if off > _MOVED * self.tolerance:
            raise DataError(
                f"{self.where}: replaying {self.recorded.folder}, steps {block.start + 1} to {block.stop}: the "
                f"optimiser's state (momenta) at the next step is off by {off:.1e} of its size from where these steps "
                "led: it was loaded, cleared or changed between two steps. Record each part of such a training into a "
                "folder of its own, as a stage of its own"
            )
