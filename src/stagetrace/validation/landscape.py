"""What a stage minimised, with weights on its examples: value, gradient and curvature products at any point.

    F(x) = (1/n) sum_i w_i loss_i(x) + weight_decay / 2 |x|^2 + sum_j a_j (x_j - W_j)^2 + proximity / 2 |x - start|^2

over the stage's own parameters x `[own.size]`, with n the number of all examples, whatever their weights.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.plan import first_line
from stagetrace.errors import DifferentiationError, refuse
from stagetrace.parallel import world
from stagetrace.stages.data import Batch
from stagetrace.stages.problem import Problem
from stagetrace.stages.risk import check_finite

Slope = Callable[[], tuple[Tensor, Tensor]]
"""A batch's part of the gradient, with its graph, and the point it hangs on."""


@final
class Landscape:
    """The function `F` above. Examples of weight 0 are never evaluated; the others are read once and kept.

    Sharded over processes by batches of the stage's `batch_size`.

    Args:
        problem: the stage at its place in a chain; its values are the start, and what it inherited stays.
        weights: one per example, `[n]`, finite and not negative; None weighs each by 1.
        memory: bytes of kept graphs per process; what does not fit is computed anew for each product.
        proximity: of a pull towards the start; 0 for none.

    Raises:
        DescriptionError: weights of the wrong shape, negative or not finite.
    """

    def __init__(self, problem: Problem, weights: Tensor | None, memory: int, proximity: float = 0.0) -> None:
        self.problem, self.risk, self.memory, self.proximity = problem, problem.risk, memory, proximity
        examples = self.risk.examples
        weights = checked_weights(weights, len(examples), problem.stage.where)
        weights = weights.to(problem.own.device, problem.own.dtype) / len(examples)
        plan = world().shard(examples.plan(weights.nonzero().flatten().tolist()))
        self._batches = [(batch, weights[list(batch.indices)]) for batch in self.risk.read(plan)]
        self._bytes: int | None = None
        self.start = problem.own.flatten(problem.own_values)
        self._anchor = problem.anchor

    def at(self, point: Tensor) -> "Place":
        """The function at a point; the value is NaN or infinite where a loss is."""
        return Place(self, point)

    def penalty(self, point: Tensor) -> tuple[float, Tensor]:
        """The penalty and its gradient."""
        decay, pull = self.problem.stage.weight_decay, self.problem.penalty - self.problem.stage.weight_decay
        away = point - self._anchor
        value = decay / 2 * (point @ point) + (pull * away) @ away / 2  # pull is 2 a on W, 0 elsewhere
        moved = point - self.start
        value = value + self.proximity / 2 * (moved @ moved)
        return float(value), decay * point + pull * away + self.proximity * moved

    @property
    def stiffness(self) -> Tensor:
        """The penalty's second derivative, a diagonal `[own.size]`."""
        return self.problem.penalty + self.proximity

    def explain(self, point: Tensor) -> None:
        """Find the example whose loss is not finite, and raise.

        Raises:
            DataError: with its index.
        """
        own = self.problem.own.unflatten(point)
        with torch.no_grad():
            for batch, _ in self._batches:
                check_finite(self.risk.losses(own, self.risk.inherited_values, batch), batch.indices, self.risk.where)

    def slopes(self, point: Tensor) -> tuple[Tensor, list[tuple[Tensor, Slope]]]:
        """The weighted loss, and each batch's gradient beside a way to have it with its graph."""
        total, parts = torch.zeros((), dtype=torch.float64, device=point.device), []
        room = self.memory
        for batch, weights in self._batches:
            loss, gradient, leaf = self._measured(point, batch, weights)
            total += loss
            room -= self._bytes or 0
            # the default arguments bind this turn's values
            kept: Slope = lambda gradient=gradient, leaf=leaf: (gradient, leaf)  # noqa: E731
            anew: Slope = lambda batch=batch, weights=weights: self._slope(point, batch, weights)[1:]  # noqa: E731
            parts.append((gradient.detach(), kept if room >= 0 else anew))
        return total, parts

    def _measured(self, point: Tensor, batch: Batch, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A batch's loss and gradient; the first time, the bytes that its graph keeps are counted."""
        if self._bytes is not None:
            return self._slope(point, batch, weights)
        saved: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            measured = self._slope(point, batch, weights)
        self._bytes = sum(saved.values())
        return measured

    def _slope(self, point: Tensor, batch: Batch, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf = point.detach().requires_grad_()
        with torch.enable_grad():
            own = self.problem.own.unflatten(leaf)
            loss = weights @ self.risk.losses(own, self.risk.inherited_values, batch)
        return loss.detach(), self.differentiate(loss, leaf), leaf

    def differentiate(self, output: Tensor, leaf: Tensor, along: Tensor | None = None) -> Tensor:
        """The derivative of a number, with its graph, or of a gradient along a vector; zero where it is constant.

        Raises:
            DifferentiationError: an operation has no such derivative.
        """
        if not output.requires_grad:  # a loss without parameters, or a gradient of a loss linear in them
            return torch.zeros_like(leaf)
        first = along is None
        try:
            return torch.autograd.grad(
                output, leaf, along, create_graph=first, retain_graph=True, materialize_grads=True
            )[0]
        except (RuntimeError, NotImplementedError) as cause:
            raise DifferentiationError(
                f"{self.risk.where}: solving again needs second derivatives, which an operation of the model or loss "
                f"lacks ({first_line(cause)}); replace that operation"
            ) from cause


@final
class Place:
    """One point of a landscape: `value`, `gradient` `[own.size]`, and products with the Hessian there."""

    def __init__(self, landscape: Landscape, point: Tensor) -> None:
        self.point, self._landscape = point, landscape
        penalty, slope = landscape.penalty(point)
        loss, self._parts = landscape.slopes(point)
        mine = sum((gradient for gradient, _ in self._parts), torch.zeros_like(point))
        self.value = float(world().sum(loss)) + penalty
        self.gradient = world().sum(mine) + slope
        self.norm = float(self.gradient.norm())

    def product(self, vector: Tensor) -> Tensor:
        """`H v`, penalties included, for one vector `[own.size]`: reverse mode through the gradient's graph."""
        total = torch.zeros_like(vector)
        for _, slope in self._parts:
            gradient, leaf = slope()
            total += self._landscape.differentiate(gradient, leaf, vector)
        return world().sum(total) + self._landscape.stiffness * vector


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
