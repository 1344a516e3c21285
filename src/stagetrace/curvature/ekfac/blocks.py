"""The blocks of an approximation: a matrix of eigenvalues in a basis of two sides, for each group of parameters.

A group's parameters are a matrix `[m, n]`. Its block of the curvature is `(U_left x U_right) diag(values) (...)'`, with
orthogonal `U_left [m, m]` and `U_right [n, n]`; a side without a basis stays in its axes. This holds all forms:

    Kronecker    both sides: a layer's outputs and inputs
    table        one side: an embedding, diagonal in the lines of the table; a layer too long on one side
    exact        parameters as one column `[m, 1]` and `U_left` of their own Gauss-Newton block
    diagonal     no side
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from stagetrace.taps.layout import Layout

__all__ = ["Block", "BlockBasis", "Form"]

Form = Literal["Kronecker", "table", "exact", "diagonal"]

FEW = 8
"""Vectors up to which all rows of all of them are turned as one matrix."""


@final
@dataclass(frozen=True, eq=False)
class Block:
    """A block: its eigenvalues `[m, n]` in single precision at least, its bases in float64."""

    layout: Layout
    form: Form
    values: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    def into(self, matrices: Tensor) -> Tensor:
        """Coordinates `[m, n, k]` of matrices `[m, n, k]`."""
        return _turned(matrices, self.left, self.right)

    def out(self, coordinates: Tensor) -> Tensor:
        """The matrices with these coordinates."""
        left, right = (None if side is None else side.mT for side in (self.left, self.right))
        return _turned(coordinates, left, right)

    def diagonal_stays(self, diagonal: Tensor) -> bool:
        """Whether a diagonal `[m, n]` in the parameters is the same diagonal in the coordinates."""
        alike = True
        if self.left is not None:
            alike = alike and bool((diagonal == diagonal[:1]).all())
        if self.right is not None:
            alike = alike and bool((diagonal == diagonal[:, :1]).all())
        return alike


@final
class BlockBasis:
    """The bases of blocks that cover vectors `[dim]`, as an orthogonal map of them."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(blocks)

    def into(self, columns: Tensor) -> Tensor:
        """Coordinates `[dim, k]` of vectors `[dim, k]`, in the vectors' own order of parameters."""
        found = torch.empty_like(columns)
        for block in self.blocks:
            block.layout.scatter(block.into(block.layout.gather(columns)), found)
        return found

    def out(self, coordinates: Tensor) -> Tensor:
        """The vectors with these coordinates."""
        found = torch.empty_like(coordinates)
        for block in self.blocks:
            block.layout.scatter(block.out(block.layout.gather(coordinates)), found)
        return found

    def turned(self, diagonal: Tensor) -> Tensor | None:
        """A diagonal matrix `[dim]` in these coordinates, if it is diagonal there too; None if not."""
        column = diagonal.unsqueeze(1)
        stays = all(block.diagonal_stays(block.layout.gather(column)[..., 0]) for block in self.blocks)
        return diagonal if stays else None


def _turned(matrices: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """`left' M right` for each of the matrices `[m, n, k]`."""
    m, n, k = matrices.shape
    if left is not None:
        matrices = (left.mT.to(matrices.dtype) @ matrices.reshape(m, n * k)).reshape(m, n, k)
    if right is None:
        return matrices
    right = right.to(matrices.dtype)
    if k > FEW:
        return right.mT @ matrices  # row by row of m
    rows = matrices.permute(0, 2, 1).reshape(m * k, n)  # of few, row by row is a product with a vector for each of m
    return (rows @ right).reshape(m, k, -1).permute(0, 2, 1)
