"""One recorded step: its batches' losses as they were divided, the gradient, and how that was clipped."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from stagetrace.recording.seen import foreach_norm
from stagetrace.recording.step import Clip, Micro, Step
from stagetrace.replay.training import Training
from stagetrace.stages.space import Params

_WHOLE = 1e-5
"""How near to a whole number a divisor must be, relative to it, to be taken for one (sums in float32 are that good)."""


@final
@dataclass(frozen=True)
class Scale:
    """What a batch's summed losses were multiplied by before they went backward: `loss = factor * sum_i loss_i`.

    factor: as read off the number that went backward. whole: whether it is one over a whole number (of examples, tokens
    or accumulated batches), as every mean is. error: between the recorded number and the replay, relative to it. told:
    whether it could be read off; a loss of 0 has every factor, and 1 over the number of examples stands there.
    """

    factor: float
    whole: bool
    error: float
    told: bool = True

    @staticmethod
    def of(micro: Micro, losses: Tensor) -> "Scale":
        total = float(losses.detach().double().sum())
        if total == 0.0 or not math.isfinite(total) or micro.loss == 0.0:
            return Scale(1 / len(losses), True, abs(micro.loss - total / len(losses)), told=False)
        divisor = total / micro.loss
        nearest = round(divisor)
        if nearest and abs(divisor - nearest) <= _WHOLE * abs(nearest):
            return Scale(1 / nearest, True, abs(divisor / nearest - 1))
        return Scale(1 / divisor, False, 0.0)


@final
@dataclass(frozen=True, eq=False)
class Slopes:
    """The gradient of a step's loss before and after it was clipped, by parameter; one that rests has none.

    buffers: as they were before each batch, where that was looked at.
    """

    raw: Params
    clipped: Params
    scales: tuple[Scale, ...]
    norms: tuple[float, ...]
    buffers: tuple[Params, ...] = ()

    @property
    def norm(self) -> float:
        """The Euclidean norm of what the optimiser saw."""
        return norm_of(self.clipped.values())


def weighted_loss(
    training: Training,
    trained: Params,
    inherited: Params,
    micro: Micro,
    weights: Tensor | None = None,
    factor: float | None = None,
) -> tuple[Tensor, Scale]:
    """`factor * sum_i w_i loss_i` of a batch, and its factor; a weight of 1 is how it was trained.

    factor: None reads it off the recorded loss, which tells it at the recorded parameters alone.
    """
    return summed(training.losses(trained, inherited, micro), micro, weights, factor)


def summed(losses: Tensor, micro: Micro, weights: Tensor | None, factor: float | None) -> tuple[Tensor, Scale]:
    """The sum of the losses `[batch]`, or of token losses `[batch, length]`, each times its weight; see above."""
    scale = Scale.of(micro, losses) if factor is None else Scale(factor, True, 0.0)
    if weights is None or losses.ndim > 1:
        return scale.factor * (losses if weights is None else losses * weights.to(losses)).sum(), scale
    return scale.factor * (losses @ weights.to(losses)), scale


def slopes(
    training: Training,
    trained: Params,
    inherited: Params,
    step: Step,
    weights: Tensor | None = None,
    factors: Sequence[float] | None = None,
) -> Slopes:
    """The gradient of a step at these parameters; moves the running statistics as the step did.

    weights: `[n]`, one for each example of the data set; None is how it was trained. factors: of each batch, for
    parameters other than the recorded ones; see `weighted_loss`.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in trained.items() if name not in step.resting}
    raw: Params = {}
    scales, buffers = list[Scale](), list[Params]()
    for place, micro in enumerate(step.micros):
        buffers.append(training.buffers)
        training.put(buffers[-1])  # without what the batch before left of its graph
        chosen = None if weights is None else weights[list(micro.ids)]
        factor = None if factors is None else factors[place]
        with torch.enable_grad():
            loss, scale = weighted_loss(training, {**trained, **leaves}, inherited, micro, chosen, factor)
            found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        scales.append(scale)
        for name, gradient in zip(leaves, found, strict=True):
            raw[name] = raw[name] + gradient if name in raw else gradient
    return replace(clipped(raw, step.clips, tuple(scales)), buffers=tuple(buffers))


def clipped(raw: Params, clips: Sequence[Clip], scales: tuple[Scale, ...] = ()) -> Slopes:
    """The gradient after `clip_grad_norm_`, with each norm before it: `g min(1, limit / (|g| + 1e-6))`.

    In PyTorch's own arithmetic, so that a replay does not drift from the recording by roundings.
    """
    after, norms = raw, list[float]()
    for clip in clips:
        chosen = [name for name in clip.names if name in after]
        norm = torch.nn.utils.get_total_norm([after[name] for name in chosen])
        norms.append(float(norm))
        factor = torch.clamp(clip.limit / (norm + 1e-6), max=1.0)
        after = {**after, **{name: after[name] * factor for name in chosen}}
    return Slopes(raw, after, scales, tuple(norms))


def through_clips(cotangent: Params, raw: Params, clips: Sequence[Clip]) -> None:
    """From the cotangent `[k, *shape]` of the clipped gradient to that of the gradient before, in its place.

    With `f = limit / (N + 1e-6)` and `N = |g|`:  cotangent f - (cotangent . g) f / (N + 1e-6) g / N  where f < 1.
    """
    points = [raw]
    for clip in clips[:-1]:
        points.append(clipped(points[-1], [clip]).clipped)
    for clip, point in zip(reversed(clips), reversed(points), strict=False):
        chosen = [name for name in clip.names if name in point]
        norm = norm_of([point[name] for name in chosen])
        factor = clip.limit / (norm + 1e-6)
        if factor >= 1:
            continue
        dot = sum(torch.mv(cotangent[name].flatten(1), point[name].flatten()) for name in chosen)  # [k]
        assert isinstance(dot, Tensor)
        along = dot * factor / (norm + 1e-6) / norm
        for name in chosen:
            cotangent[name].mul_(factor).addcmul_(along.view(-1, *[1] * point[name].ndim), point[name], value=-1)


def norm_of(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm over several tensors on one device."""
    given = [tensor.detach() for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(foreach_norm(given)).double())) if given else 0.0
