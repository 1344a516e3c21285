"""Is the gradient by autograd the derivative of the loss? Judged by differences of the loss itself.

Along a direction u, `(L(theta + h u) - L(theta - h u)) / 2h` is the derivative up to `h^2`; two steps give an
extrapolated value and how far to trust it. In float64 where the model allows it, else at steps that its precision can
judge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.checks.dependence import WeightedGradient, check_gradient_not_zero, perturbed, weighted_gradient
from stagetrace.checks.directions import beside_padding, direction_of, weights_of
from stagetrace.checks.finding import Level
from stagetrace.checks.rounding import Rounding
from stagetrace.curvature.rounding import RoundedTo
from stagetrace.errors import DifferentiationError, some_names
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params

AGREED = 1e-3
"""Relative difference, over the sum of all parameters' shares, up to which two derivatives count as equal."""

JUDGED = 0.05
"""Relative uncertainty of a difference above which nothing is concluded from it."""


@final
@dataclass(frozen=True)
class Difference:
    """A derivative by differences, and its uncertainty."""

    value: float
    uncertainty: float


def gradient_is_the_derivative(risk: Risk, batch: Batch, *, coupled: bool) -> tuple[Level, str]:
    """Compare the gradient with differences of the loss: where it is not zero, and where it is.

    coupled: whether a zero gradient in all inherited parameters is worth a warning, as in a stage's own loss.

    Returns:
        How much it matters, and what was found: a warning where an operation's backward is not its derivative.

    Raises:
        DifferentiationError: the gradient cannot be taken; or the loss depends on parameters in which it is zero: the
            model uses them under `no_grad`, or detaches the result.
        DataError: as `check_gradient_not_zero`.
    """
    found = weighted_gradient(risk, batch)
    if not found.of:
        risk = perturbed(risk)
        found = weighted_gradient(risk, batch)
    point = {**risk.inherited_values, **risk.trained_values}
    with torch.no_grad(), RoundedTo(risk.trained.dtype) as seen:
        outputs = risk.outputs(risk.trained_values, risk.inherited_values, batch)
        losses = risk.reduce(outputs, batch)
    rounding = Rounding.of_outputs(outputs, seen.coarsest)
    size = max(float(losses.double().abs() @ weights_of(batch).to(losses.device)), len(batch) * rounding.size)
    if found.flat:
        _refuse_detached(risk, batch, found, point, size, rounding.eps)
    notes = [f"{len(found.flat)} parameters have zero gradient there ({some_names(found.flat)})"] if found.flat else []
    without = check_gradient_not_zero(risk, found)
    worst, unjudged = 0.0, 0
    for names in (risk.trained_values, risk.inherited_values):
        steep = [name for name in names if name in found.of]
        if not steep:
            continue
        direction = beside_padding(direction_of({name: point[name] for name in steep}), risk.evaluation.model)
        shares = [float((found.of[name].double() * direction[name].double()).sum()) for name in steep]
        scale = sum(map(abs, shares))
        measured = _along(risk, batch, point, direction, size, rounding.eps)
        if measured.uncertainty > JUDGED * scale:
            unjudged += 1
            continue
        gap = abs(measured.value - sum(shares)) - 3 * measured.uncertainty
        worst = max(worst, gap / scale)
    wrong = [without] if without and coupled else []
    if worst > AGREED:
        wrong.append(
            f"the gradient that autograd gives is not the derivative of the loss: they differ by {worst:.1%} along a "
            "random direction (a custom backward, a straight-through estimator, a gradient that is reversed, clipped "
            "or partly detached?); training followed that gradient, and scores are only as correct as it is"
        )
    if wrong:
        return Level.WARNING, "; ".join([*wrong, *notes])
    if unjudged:
        coarse = "the precision of the loss is too coarse for its differences to judge the gradient"
        return Level.NOTE, "; ".join([coarse, *notes])
    right = f"the gradient of {len(batch)} examples is the derivative of their loss, by differences"
    return Level.OK, "; ".join([right, *notes])


def _refuse_detached(risk: Risk, batch: Batch, found: WeightedGradient, point: Params, size: float, eps: float) -> None:
    """Refuse parameters on which the loss depends, but whose gradient is zero."""
    if not _depends(risk, batch, found.flat, point, size, eps):
        return
    guilty = [name for name in found.flat if _depends(risk, batch, [name], point, size, eps)] or list(found.flat)
    raise DifferentiationError(
        f"{risk.where}: the loss depends on {some_names(guilty)}, but its gradient there is zero: the model uses "
        "them under torch.no_grad() or torch.inference_mode(), or detaches the result, so that their influence would "
        "come out as zero. Give a model whose forward does not (freeze parameters by requires_grad_(False) instead: "
        "that keeps the derivative)"
    )


def _depends(risk: Risk, batch: Batch, names: Sequence[str], point: Params, size: float, eps: float) -> bool:
    """Whether differences show, beyond their uncertainty, that the loss depends on these parameters."""
    measured = _along(risk, batch, point, direction_of({name: point[name] for name in names}), size, eps)
    return abs(measured.value) > 5 * measured.uncertainty


def _along(risk: Risk, batch: Batch, point: Params, direction: Params, size: float, eps: float) -> Difference:
    def at(step: float) -> float:
        shifted = {
            name: value + (step * direction[name]).to(value) for name, value in point.items() if name in direction
        }
        return float(_total(risk, {**point, **shifted}, batch))

    return difference(at, size, eps)


def difference(at: Callable[[float], float], size: float, eps: float) -> Difference:
    """The derivative at 0 of a function of a step, whose values are about `size` and exact to `eps`.

    The best of a few steps, by its uncertainty: the change from halving the step, and rounding.

    Example:
        >>> import math
        >>> found = difference(math.sin, 1.0, 2.2e-16)
        >>> abs(found.value - 1) < found.uncertainty < 1e-9
        True
    """
    best = Difference(0.0, float("inf"))
    middle = eps ** (1 / 3)
    for step in (middle, 10 * middle, middle / 10):
        whole = (at(step) - at(-step)) / (2 * step)
        half = (at(step / 2) - at(-step / 2)) / step
        value = (4 * half - whole) / 3  # the terms in step^2 cancel
        found = Difference(value, abs(half - whole) + 16 * eps * size / step)
        if found.uncertainty < best.uncertainty:
            best = found
        if best.uncertainty <= JUDGED / 50 * abs(best.value):
            break
    return best


def _total(risk: Risk, point: Params, batch: Batch) -> Tensor:
    trained = {name: point[name] for name in risk.trained_values}
    inherited = {name: point[name] for name in risk.inherited_values}
    with torch.no_grad():
        losses = risk.losses(trained, inherited, batch).double()
        return losses @ weights_of(batch).to(losses)
