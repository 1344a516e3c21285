"""The approximation as a linear operator whose eigenvalues and eigenvectors are known."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.chunk import Product
from stagetrace.curvature.eigen import Eigen
from stagetrace.curvature.ekfac.blocks import Block, BlockBasis
from stagetrace.curvature.gauss_newton import gauss_newton_by_reverse, gauss_newton_retained_graph
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import StagetraceError
from stagetrace.parallel import world
from stagetrace.stages.data import Batch
from stagetrace.stages.halves import by_halves, is_out_of_memory
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import ParameterSpace

__all__ = ["EKFACOperator", "GaussNewtonOnce", "measured_on"]

PREDICTIONS, FEWEST = 8000, 32
"""Predictions that are enough to measure an answer by, and the fewest examples."""


def measured_on(risk: Risk, total: int) -> int:
    """On how many of a fit's `total` examples its answer is measured: all, but of long texts as many as are enough."""
    return min(total, 2 * max(FEWEST // 2, PREDICTIONS // risk.predictions // 2))


@final
class EKFACOperator(LinearOperator):
    """`x -> U diag(values) U' x` with the blocks' bases U; every parameter is in exactly one block.

    It is fitted once it is first used, and never damped itself: a solver adds the damping to the eigenvalues.

    Args:
        space: of the trained parameters. fitted: gives the blocks. exact: what it approximates. notes: what it is.
    """

    def __init__(
        self,
        space: ParameterSpace,
        fitted: Callable[[], Sequence[Block]],
        exact: LinearOperator,
        notes: Sequence[str] = (),
    ) -> None:
        self.size, self.dtype, self.device = space.size, space.dtype, space.device
        self._fitted, self._exact, self._notes = fitted, exact, tuple(notes)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(self._fitted())

    @cached_property
    def _eigen(self) -> Eigen:
        values = torch.zeros(self.size, 1, dtype=torch.float64, device=self.device)
        for block in self.blocks:
            block.layout.scatter(block.values.double().unsqueeze(2), values)
        return Eigen(values.squeeze(1), basis=BlockBasis(self.blocks))

    def eigen(self) -> Eigen:
        return self._eigen

    def apply(self, vectors: Tensor) -> Tensor:
        return self._eigen.scaled(self._eigen.values, vectors)

    @property
    def trace(self) -> float:
        """The sum of the eigenvalues: that of the Gauss-Newton matrix, where the labels' expectation was exact."""
        return float(self._eigen.values.sum())

    @property
    def approximates(self) -> LinearOperator:
        return self._exact

    @property
    def notes(self) -> tuple[str, ...]:
        return self._notes


@final
class GaussNewtonOnce(LinearOperator):
    """The true Gauss-Newton matrix over some examples, for a product or two: nothing is prepared or kept."""

    def __init__(self, risk: Risk, indices: Sequence[int], batch_size: int) -> None:
        self.size, self.dtype, self.device = risk.trained.size, risk.trained.dtype, risk.trained.device
        self._risk, self._indices, self._batch_size = risk, indices, batch_size
        self._way: Callable[[Risk, Batch], Product] = gauss_newton_retained_graph

    @property
    def draws(self) -> tuple[LinearOperator, ...]:
        total = len(self._indices)
        measured = measured_on(self._risk, total)
        if measured == total:
            return (self,)
        generator = torch.Generator().manual_seed(0)
        return self.subsample(measured // 2, generator), self.subsample(measured // 2, generator)

    def subsample(self, examples: int, generator: torch.Generator) -> LinearOperator:
        drawn = torch.randperm(len(self._indices), generator=generator)[:examples].tolist()
        return GaussNewtonOnce(self._risk, [self._indices[place] for place in sorted(drawn)], self._batch_size)

    def apply(self, vectors: Tensor) -> Tensor:
        risk, what = self._risk, "a product with the Gauss-Newton matrix"
        total = torch.zeros_like(vectors)
        with world().together(f"{what} of {risk.where}", vectors):
            mine = world().shard(self._indices)
            batches = risk.read(risk.examples.batch_indices(mine, size=self._batch_size))
            for _, product in by_halves(risk, what, batches, lambda batch: self._product(batch, vectors)):
                total += product
        return world().sum(total) / len(self._indices)

    def _product(self, batch: Batch, vectors: Tensor) -> Tensor:
        """Of a batch; by reverse mode alone from the first one that has an operation without forward mode."""
        try:
            return self._way(self._risk, batch)(vectors)
        except StagetraceError:
            raise
        except (RuntimeError, NotImplementedError) as cause:
            if self._way is gauss_newton_by_reverse or is_out_of_memory(cause):
                raise
        self._way = gauss_newton_by_reverse
        return self._way(self._risk, batch)(vectors)
