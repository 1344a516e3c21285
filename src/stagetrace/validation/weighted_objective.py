"""The objective of a stage with weights on its examples: value, gradient and curvature at any point.

    F(x) = (1/n) sum_i w_i loss_i(x) + sum_j d_j / 2 x_j^2 + sum_j a_j (x_j - W_j)^2 + proximity / 2 |x - start|^2

over the stage's trained parameters x `[trained.size]`, with n the number of all examples, whatever their weights. A
loss is the stage's own, times the stage's own weight for the example where it has one; d is the stage's weight decay.
"""

from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import DiagonalOperator
from stagetrace.curvature.weighted import WeightedLosses
from stagetrace.errors import refuse
from stagetrace.stages.bound import BoundStage


@final
class WeightedObjective:
    """The function `F` above.

    Args:
        bound: the stage at its place in a chain; its values are the start; inherited parameters stay as they are.
        weights: one per example, `[n]`, finite and not negative; None weighs each by 1.
        memory: bytes of retained graphs per process; the rest is recomputed for each product.
        proximity: of a pull towards the start; 0 for none.

    Raises:
        DescriptionError: weights of the wrong shape, negative or not finite.
    """

    def __init__(self, bound: BoundStage, weights: Tensor | None, memory: int, proximity: float = 0.0) -> None:
        self.bound, self.proximity = bound, proximity
        examples = len(bound.risk.examples)
        weights = checked_weights(weights, examples, bound.stage.where)
        risk = bound.risk.exact  # what a score is compared with is trained in the precision of the parameters
        self.losses = WeightedLosses(risk, weights.to(bound.trained.dtype) / examples, memory)
        self.start = bound.trained.flatten(bound.trained_values)
        self._anchor = bound.anchor

    def at(self, point: Tensor) -> "Linearization":
        """The function at a point; the value is NaN or infinite where a loss is."""
        return Linearization(self, point)

    def penalty(self, point: Tensor) -> tuple[float, Tensor]:
        """The penalty and its gradient."""
        decay, pull = self.bound.decay, self.bound.pull
        away = point - self._anchor
        value = (decay * point) @ point / 2 + (pull * away) @ away / 2  # pull is 2 a on W, 0 elsewhere
        displacement = point - self.start
        value = value + self.proximity / 2 * (displacement @ displacement)
        return float(value), decay * point + pull * away + self.proximity * displacement

    def raise_not_finite(self, point: Tensor) -> None:
        """Find the example whose loss is not finite, and raise.

        Raises:
            DataError: with its index.
        """
        self.losses.raise_not_finite(self.bound.trained.unflatten(point))


@final
class Linearization:
    """The function at one point: `value`, `gradient` `[trained.size]`, its `norm`, and the `curvature` there."""

    def __init__(self, objective: WeightedObjective, point: Tensor) -> None:
        losses = objective.losses.at(objective.bound.trained.unflatten(point))
        penalty, penalty_gradient = objective.penalty(point)
        self.point, self.value = point, losses.value + penalty
        self.gradient = losses.gradient + penalty_gradient
        self.norm = float(self.gradient.norm())
        self.curvature = losses + DiagonalOperator(objective.bound.penalty + objective.proximity)


def checked_weights(weights: Tensor | None, examples: int, where: str) -> Tensor:
    """One weight per example `[n]`; None is ones.

    Raises:
        DescriptionError: of another shape, negative or not finite.
    """
    if weights is None:
        return torch.ones(examples, dtype=torch.float64)
    if not isinstance(weights, Tensor) or weights.shape != (examples,):
        given = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        refuse(
            f"{where}: weights must be a tensor of one weight per example, [{examples}], got {given}; "
            "type leave_out(...)"
        )
    bad = (~torch.isfinite(weights) | (weights < 0)).nonzero().flatten()
    if len(bad):
        index = int(bad[0])
        refuse(
            f"{where}: example {index} has the weight {float(weights[index])}; weights are 0 (left out), 1 (as "
            "trained) or any finite number above 0"
        )
    return weights.detach()
