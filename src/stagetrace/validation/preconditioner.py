"""A preconditioner from a stage's curvature at its minimum, to solve it again nearby with few products."""

from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.choices import Hessian
from stagetrace.curvature.eigen import Eigen
from stagetrace.curvature.operator import DiagonalOperator, LinearOperator
from stagetrace.stages.bound import BoundStage

NEAR = 1.5
"""Eigenvalues within this factor of the middle one are taken to be equal to it."""


@final
class Preconditioner(LinearOperator):
    """`M^-1 r` with `M = middle I + V (values - middle) V'`: the Hessian, its bulk of eigenvalues made equal.

    Positive definite: eigenvalues are replaced by their absolute values, at least a millionth of the largest. A stage
    with fewer examples than parameters has most eigenvalues at the penalty, so that V is thin. V is stored in single
    precision: a preconditioner changes the number of iterations, not the solution.

    vectors: `[size, k]`; gains: `1 / value - 1 / middle`, `[k]`.
    """

    def __init__(self, middle: float, vectors: Tensor, gains: Tensor, dtype: torch.dtype) -> None:
        self.middle, self.vectors, self.gains = middle, vectors, gains
        self.size, self.dtype, self.device = len(vectors), dtype, vectors.device

    def apply(self, vectors: Tensor) -> Tensor:
        coordinates = self.gains.unsqueeze(1) * (self.vectors.mT @ vectors.to(self.vectors.dtype))
        return vectors / self.middle + (self.vectors @ coordinates).to(vectors.dtype)

    @staticmethod
    def of(bound: BoundStage, proximity: float = 0.0, max_size: int = 6000) -> "Preconditioner | None":
        """From the exact Hessian at the stage's parameters: `trained.size` products and one eigendecomposition.

        Returns:
            None for more than `max_size` parameters: the dense matrix would cost more than it saves.
        """
        size = bound.trained.size
        if size > max_size:
            return None
        matrix = Hessian().operator(bound) + DiagonalOperator(torch.full_like(bound.penalty, proximity))
        eigen = Eigen.of(matrix.to_dense(), "the Hessian", matrix.rounding)
        values, vectors = eigen.values, eigen.vectors
        assert vectors is not None
        values = values.abs().clamp_min(1e-6 * float(values.abs().max()))
        middle = float(values.median())
        apart = (values > NEAR * middle) | (values < middle / NEAR)
        return Preconditioner(
            middle, vectors[:, apart].float(), (1 / values[apart] - 1 / middle).float(), bound.trained.dtype
        )
