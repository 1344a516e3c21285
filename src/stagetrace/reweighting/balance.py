"""Weights of the examples of several stages: not negative, of mean 1 in each stage, so that only the balance changes.

A step goes along the projected gradient. With w the weights, g the derivative of a loss in them and P the projection
onto the weights that are allowed, the path is `w(t) = P(w - t g)`, and along it the loss falls to first order. Its
length is the root mean square of `w(t) - w` over all examples of all stages.

Source: Nocedal & Wright, Numerical Optimization (2006), sections 4.1 (trust regions) and 16.7 (gradient projection).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""By stage, float64 `[n]`: what multiplies each example's loss."""

FIRST = math.sqrt(0.1)
"""The length that is tried first: as far as leaving out a random tenth of all examples, which is what the smoothness
check tries."""

LEAST = 0.1
"""The share of the predicted change that must come true, or the step is undone. Where training is so rough that less
does, a loss that fell did so by chance, and would rise as well in another order of the batches."""

_DOUBLINGS, _HALVINGS = 40, 60


def projected(values: Tensor) -> Tensor:
    """The nearest weights that are not negative and have the mean 1: `max(values - shift, 0)`.

    Source: Held, Wolfe & Crowder (1974); the sum of the weights is n in place of 1.

    Example:
        >>> projected(torch.tensor([3.0, 1.0, -2.0]).double())
        tensor([2.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    values = values - values.max()  # which shifts nothing, and keeps the digits of large values
    ordered = values.sort(descending=True).values
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype)
    shifts = (ordered.cumsum(0) - len(values)) / counts  # if so many of the largest stay above 0
    last = int((ordered > shifts).nonzero()[-1])
    return (values - shifts[last]).clamp(min=0)


def length_of(start: Weights, end: Weights) -> float:
    """The root mean square change of a weight, over all examples of all stages."""
    moved = torch.cat([end[stage] - weights for stage, weights in start.items()])
    return float(moved.square().mean().sqrt())


def predicted_change(start: Weights, end: Weights, slopes: Weights) -> float:
    """The change of the loss to first order: negative = it falls."""
    return sum(float(slopes[stage] @ (end[stage] - weights)) for stage, weights in start.items())


def along(start: Weights, slopes: Weights, length: float) -> Weights:
    """The weights at that length along the path; the farthest where it ends before, the start where nothing falls."""
    across = torch.cat([each - each.mean() for each in slopes.values()])
    steepness = float(across.square().mean().sqrt())
    if not steepness:
        return start

    def at(t: float) -> Weights:
        return {stage: projected(weights - t * slopes[stage]) for stage, weights in start.items()}

    near = far = length / steepness  # projections shorten, so the path is no longer than asked here
    for _ in range(_DOUBLINGS):
        if length_of(start, at(far)) >= length:
            break
        near, far = far, 2 * far
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        near, far = (near, middle) if length_of(start, at(middle)) >= length else (middle, far)
    return at(near)


def next_length(length: float, came: float) -> float:
    """How far to go next, after a step of which the share `came` of the predicted change came true.

    With errors that grow as the square of the length, half of the prediction comes true at `length / (2 (1 - came))`:
    there the loss is lowest. Twice as far at most. After a step that is undone, a quarter.

    Example:
        >>> [next_length(1.0, came) for came in (1.1, 0.9, 0.75, 0.5, 0.0, -9.0)]
        [2.0, 2.0, 2.0, 1.0, 0.25, 0.25]
    """
    if came < LEAST:
        return length / 4
    return length * min(2.0, 0.5 / (1 - came) if came < 1 else 2.0)
