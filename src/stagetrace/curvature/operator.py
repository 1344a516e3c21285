"""Linear operators: all that a solver knows of a stage.

An operator multiplies one vector `[dim]` or several at once `[dim, k]`. Operators add up, so damping and
penalties are terms of a sum and never a change to an operator that already exists.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.cost import Cost
from stagetrace.curvature.eigen import Eigen
from stagetrace.curvature.shares import ALONE, Shares
from stagetrace.errors import DescriptionError


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a factor, `[rows, dim]`, their squared norms in float64, and the sum of those that were left out."""

    matrix: Tensor
    squares: Tensor
    left_out: float
    shares: Shares = ALONE

    def sorted(self, negligible: float) -> "Rows":
        """The largest first, without the smallest ones while all that is left out adds up to at most so much."""
        matrix, squares = self.matrix, self.squares
        if bool((squares.diff() > 0).any()):
            order = squares.argsort(descending=True, stable=True)
            matrix, squares = matrix[order], squares[order]
        tail = self.left_out + squares.flip(0).cumsum(0).flip(0)  # were it left out from here on
        kept = int((tail > negligible).sum())
        left_out = float(tail[kept]) if kept < len(tail) else self.left_out
        return replace(self, matrix=matrix[:kept], squares=squares[:kept], left_out=left_out)


@final
@dataclass(frozen=True, eq=False)
class Factor:
    """`A = B' B + diagonal` with few rows in B: what a solver in the space of the rows needs.

    most_rows: as many as B can have. diagonal: `[dim]`, of at least 0.
    build, product: floating-point operations of making all rows, and of one product with A as the operator computes it.
    rows: from a scale `[dim]`, a level, the highest level and bytes: the rows of `B * scale` whose squared norm is
        above the level, which is raised where they would take more bytes; None where it would pass the highest.
    """

    most_rows: int
    diagonal: Tensor
    build: float
    product: float
    rows: Callable[[Tensor, float, float, int], Rows | None]

    def plus(self, diagonal: Tensor) -> "Factor":
        """With more on the diagonal, `[dim]`."""
        return replace(self, diagonal=self.diagonal + diagonal)


class LinearOperator(ABC):
    """A symmetric linear map on vectors of one length, dtype and device.

    Subclasses give `size`, `dtype`, `device` and `apply`; callers write `operator @ vectors`.
    """

    size: int
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def apply(self, vectors: Tensor) -> Tensor:
        """The product with each column of `vectors` `[dim, k]`; returns `[dim, k]`."""

    @property
    def psd_approximation(self) -> "LinearOperator | None":
        """A positive semi-definite operator to invert where this one is indefinite; None if there is none."""
        return None

    @property
    def approximates(self) -> "LinearOperator | None":
        """What this operator is an approximation of, to measure an answer by; None where it is the thing itself."""
        return None

    @property
    def draws(self) -> "tuple[LinearOperator, ...]":
        """Two independent draws of what it is a mean of, enough to measure an answer by; else itself alone."""
        return (self,)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a solution should say of the operator it was found with."""
        return ()

    @property
    def rounding(self) -> float:
        """The relative rounding of a product: that of the dtype, or of a coarser one that it passes through."""
        return torch.finfo(self.dtype).eps

    @property
    def shares(self) -> Shares:
        """How the processes that multiply together share what is stored; an operator of one process shares nothing."""
        return ALONE

    @final
    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with one vector `[dim]` or with several `[dim, k]`, in the same shape."""
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.size:
            raise DescriptionError(
                f"{type(self).__name__} multiplies vectors of shape [{self.size}] or [{self.size}, k], "
                f"got {list(vectors.shape)}"
            )
        if vectors.ndim == 1:
            return self.apply(vectors.unsqueeze(1)).squeeze(1)
        return self.apply(vectors)

    @final
    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        return SumOperator(self, other)

    def subsample(self, examples: int, generator: torch.Generator) -> "LinearOperator":
        """The same curvature over a random draw of `examples` examples, for stochastic solvers.

        An operator that is no average over examples is its own subsample.
        """
        del examples, generator
        return self

    def cost(self) -> Cost | None:
        """How a product is computed and what it costs; None where that is nothing to speak of."""
        return None

    def eigen(self) -> Eigen | None:
        """The eigenvalues and a basis of eigenvectors, where they are had without a product; None where not."""
        return None

    def release(self) -> None:
        """Let go of what is held in memory between products; the next one makes it anew."""
        return

    def factor(self) -> "Factor | str":
        """A factor of the operator with few rows; where it has none, why not."""
        return f"{type(self).__name__} is no average of few rows an example"

    @final
    def to_dense(self, columns: int = 64) -> Tensor:
        """The matrix `[dim, dim]`, built from `dim` products, `columns` at a time."""
        eye = torch.eye(self.size, dtype=self.dtype, device=self.device)
        return torch.cat([self.apply(block) for block in eye.split(columns, dim=1)], dim=1)


@final
class IdentityOperator(LinearOperator):
    """`x -> x`: what stands in for a curvature when there should be none.

    Example:
        >>> import torch
        >>> IdentityOperator(2, torch.float64) @ torch.tensor([3.0, 4.0], dtype=torch.float64)
        tensor([3., 4.], dtype=torch.float64)
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.size, self.dtype, self.device = size, dtype, torch.device(device)

    def apply(self, vectors: Tensor) -> Tensor:
        return vectors.clone()

    def eigen(self) -> Eigen:
        return Eigen(torch.ones(self.size, dtype=torch.float64, device=self.device))


@final
class DiagonalOperator(LinearOperator):
    """`x -> d * x`: the curvature of a quadratic penalty.

    Example:
        >>> import torch
        >>> DiagonalOperator(torch.tensor([1.0, 2.0])) @ torch.tensor([3.0, 4.0])
        tensor([3., 8.])
    """

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal
        self.size, self.dtype, self.device = diagonal.numel(), diagonal.dtype, diagonal.device

    def apply(self, vectors: Tensor) -> Tensor:
        return self.diagonal.unsqueeze(1) * vectors

    def eigen(self) -> Eigen:
        return Eigen(self.diagonal.double())


@final
class DenseOperator(LinearOperator):
    """`x -> A x` for a symmetric matrix held in memory: for tests, and for curvature one already has.

    Example:
        >>> import torch
        >>> DenseOperator(torch.tensor([[2.0, 1.0], [1.0, 3.0]])) @ torch.tensor([1.0, 1.0])
        tensor([3., 4.])
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise DescriptionError(f"DenseOperator needs a square matrix, got shape {list(matrix.shape)}")
        self.matrix = matrix
        self.size, self.dtype, self.device = matrix.shape[0], matrix.dtype, matrix.device

    def apply(self, vectors: Tensor) -> Tensor:
        return self.matrix @ vectors

    def eigen(self) -> Eigen:
        return Eigen.of(self.matrix, type(self).__name__, self.rounding)


@final
class SumOperator(LinearOperator):
    """`x -> A x + B x`; the neighbours are checked when the sum is built.

    Example:
        >>> import torch
        >>> total = DenseOperator(torch.eye(2)) + DiagonalOperator(torch.tensor([1.0, 2.0]))
        >>> total @ torch.tensor([1.0, 1.0])
        tensor([2., 3.])
    """

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        for what in ("size", "dtype", "device"):
            ours, theirs = getattr(left, what), getattr(right, what)
            if ours != theirs:
                raise DescriptionError(
                    f"cannot add {type(left).__name__} and {type(right).__name__}: {what} {ours} is not {theirs}"
                )
        self.left, self.right = left, right
        self.size, self.dtype, self.device = left.size, left.dtype, left.device

    def apply(self, vectors: Tensor) -> Tensor:
        return self.left.apply(vectors) + self.right.apply(vectors)

    @property
    def approximates(self) -> LinearOperator | None:
        left, right = self.left.approximates, self.right.approximates
        return None if left is None and right is None else SumOperator(left or self.left, right or self.right)

    @property
    def draws(self) -> tuple[LinearOperator, ...]:
        left, right = self.left.draws, self.right.draws
        if len(left) == len(right) == 1:
            return (self,)
        return tuple(SumOperator(left[place % len(left)], right[place % len(right)]) for place in range(2))

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.left.notes, *self.right.notes)

    @property
    def rounding(self) -> float:
        return max(self.left.rounding, self.right.rounding)

    @property
    def shares(self) -> Shares:
        return max(self.left.shares, self.right.shares, key=lambda shares: shares.processes)

    def subsample(self, examples: int, generator: torch.Generator) -> LinearOperator:
        return SumOperator(self.left.subsample(examples, generator), self.right.subsample(examples, generator))

    def cost(self) -> Cost | None:
        return self.left.cost() or self.right.cost()

    def release(self) -> None:
        self.left.release()
        self.right.release()

    def factor(self) -> Factor | str:
        """Of a factored operator and a diagonal that is not negative."""
        left, right = self.left.factor(), self.right.eigen()
        if isinstance(left, str):
            return left
        if right is None or right.vectors is not None or bool((right.values < 0).any()):
            return f"{type(self.right).__name__} is no diagonal of at least 0"
        return left.plus(right.values.to(self.dtype))

    def eigen(self) -> Eigen | None:
        """Of two operators with the same eigenvectors: a diagonal and a diagonal, or anything and equal diagonals."""
        left, right = self.left.eigen(), self.right.eigen()
        return None if left is None or right is None else left.plus(right)
