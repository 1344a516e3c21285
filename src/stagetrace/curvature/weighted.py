"""The weighted sum of a data set's losses at any point: value, gradient, and products with the Hessian there."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TypeVar, final

import torch
from torch import Tensor

from stagetrace.curvature.chunk import GradientGraph, Linear, gradient_graph
from stagetrace.curvature.memory import graph_bytes
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import DifferentiationError, first_line
from stagetrace.parallel import world
from stagetrace.stages.cached import CachedBatches
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk, check_finite
from stagetrace.stages.space import Params

T = TypeVar("T")


@final
class WeightedLosses:
    """`sum_i w_i loss_i` over a stage's examples. Those of weight 0 are never evaluated; the others are read once.

    Sharded over processes by batches of the stage's `batch_size`.

    Args:
        risk: the losses.
        weights: one per example, `[n]`.
        memory: bytes of retained graphs per process; the rest is recomputed for each product.
    """

    def __init__(self, risk: Risk, weights: Tensor, memory: int) -> None:
        self.risk, self.memory = risk, memory
        self._weights = weights.to(risk.trained.device, risk.trained.dtype)
        plan = world().shard(risk.examples.batch_indices(weights.nonzero().flatten().tolist()))
        self._batches = CachedBatches(risk, plan, memory)
        self._bytes: int | None = None

    @property
    def batches(self) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch with its weights."""
        return ((batch, self._weights[list(batch.indices)]) for batch in self._batches)

    def at(self, trained: Params) -> "PointHessian":
        """The sum at a point; the value is NaN or infinite where a loss is."""
        return PointHessian(self, self.risk.at(trained))

    def raise_not_finite(self, trained: Params) -> None:
        """Find the example whose loss is not finite, and raise.

        Raises:
            DataError: with its index.
        """
        with torch.no_grad():
            for batch, _ in self.batches:
                check_finite(
                    self.risk.losses(trained, self.risk.inherited_values, batch), batch.indices, self.risk.where
                )

    @property
    def counted(self) -> bool:
        """Whether a batch has been evaluated, and what its graph keeps been counted."""
        return self._bytes is not None

    def counted_bytes(
        self, risk: Risk, batch: Batch, evaluate: Callable[[], GradientGraph]
    ) -> tuple[GradientGraph, int]:
        """A batch's part, and the bytes its graph keeps: counted for the first batch and assumed for all others."""
        if self._bytes is not None:
            return evaluate(), self._bytes
        found, self._bytes = graph_bytes(risk, batch, evaluate)
        return found, self._bytes


@final
class PointHessian(LinearOperator):
    """The Hessian of the sum at one point, with the sum's `value` and `gradient` `[trained.size]` there.

    Raises:
        DifferentiationError: an operation has no second derivative.
    """

    def __init__(self, losses: WeightedLosses, risk: Risk) -> None:
        self.size, self.dtype, self.device = risk.trained.size, risk.trained.dtype, risk.trained.device
        self._risk, self._losses, self._kept = risk, losses, list[Linear]()
        self._total = torch.zeros((), dtype=torch.float64, device=self.device)
        self._recomputes = False
        self.gradient = world().sum(self._summed(self._gradients()))
        self.value = float(world().sum(self._total))

    def _gradients(self) -> Iterator[Params]:
        """Each batch's gradient; its value is added up, and its retained graph while there is room."""
        room = self._losses.memory
        for batch, weights in self._losses.batches:
            part, size = self._losses.counted_bytes(self._risk, batch, partial(self._part, batch, weights))
            self._total += part.value
            room -= size
            if room >= 0:
                self._kept.append(part.product)
            self._recomputes = room < 0
            yield part.gradient

    def apply(self, vectors: Tensor) -> Tensor:
        columns = [self._summed(self._rows(self._risk.trained.unflatten(vector))) for vector in vectors.unbind(1)]
        return world().sum(torch.stack(columns, dim=1))

    def _rows(self, vector: Params) -> Iterator[Params]:
        """Each batch's product."""
        for product in self._kept:
            yield self._differentiable(partial(product, vector))
        if self._recomputes:
            for batch, weights in islice(self._losses.batches, len(self._kept), None):
                yield self._differentiable(partial(self._part(batch, weights).product, vector))

    def _summed(self, parts: Iterable[Params]) -> Tensor:
        """The sum as a vector `[trained.size]`."""
        total: list[Tensor] = []
        for part in parts:
            more = list(part.values())
            total = [one + other for one, other in zip(total, more, strict=True)] if total else more
        trained = self._risk.trained
        return trained.flatten(dict(zip(trained.names, total, strict=True))) if total else trained.zeros(1).squeeze(1)

    def _part(self, batch: Batch, weights: Tensor) -> GradientGraph:
        return self._differentiable(
            partial(gradient_graph, self._risk, batch, weights, checked=not self._losses.counted)
        )

    def _differentiable(self, evaluate: Callable[[], T]) -> T:
        try:
            return evaluate()
        except (RuntimeError, NotImplementedError) as cause:
            raise DifferentiationError(
                f"{self._risk.where}: solving again needs second derivatives, which an operation of the model or loss "
                f"lacks ({first_line(cause)}); replace that operation"
            ) from cause
