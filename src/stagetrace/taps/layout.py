"""Where the parameters of a group lie: as pieces of a vector, and side by side in one matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.stages.space import ParameterSpace

__all__ = ["Layout", "Piece"]


@final
@dataclass(frozen=True)
class Piece:
    """A parameter as a block of the matrix.

    start, size: where it lies in the vector. rows, columns: of the block. transposed: whether it is stored so.
    """

    name: str
    start: int
    size: int
    rows: int
    columns: int
    transposed: bool = False


@final
@dataclass(frozen=True)
class Layout:
    """Parameters as blocks of one matrix `[m, n]`, beside each other (`axis=1`) or below each other (`axis=0`).

    Example:
        A linear layer's weight `[2, 3]` and bias `[2]` are the matrix `[2, 4]`.

        >>> import torch
        >>> space = ParameterSpace.of({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
        >>> layout = Layout.beside(space, {"weight": (2, 3, False), "bias": (2, 1, False)})
        >>> layout.gather(torch.arange(8.0).unsqueeze(1))[:, :, 0]
        tensor([[0., 1., 2., 6.],
                [3., 4., 5., 7.]])
    """

    pieces: tuple[Piece, ...]
    axis: int
    flat: bool = False

    @staticmethod
    def beside(space: ParameterSpace, blocks: Mapping[str, tuple[int, int, bool]]) -> "Layout":
        """Parameters beside each other; blocks: rows, columns and whether it is stored transposed, by name."""
        where = space.slices()
        return Layout(
            tuple(
                Piece(name, where[name].start, rows * columns, rows, columns, transposed)
                for name, (rows, columns, transposed) in blocks.items()
            ),
            axis=1,
        )

    @staticmethod
    def stacked(space: ParameterSpace, names: Sequence[str]) -> "Layout":
        """Parameters below each other as one column `[size, 1]`."""
        where = space.slices()
        sizes = dict(zip(space.names, space.sizes, strict=True))
        return Layout(tuple(Piece(name, where[name].start, sizes[name], sizes[name], 1) for name in names), axis=0)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(piece.name for piece in self.pieces)

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        if self.flat:
            return self.size, 1
        if self.axis:
            return self.pieces[0].rows, sum(piece.columns for piece in self.pieces)
        return sum(piece.rows for piece in self.pieces), self.pieces[0].columns

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)

    def as_column(self) -> "Layout":
        """The same parameters as one column: the matrix's entries row after row, `[m n, 1]`."""
        return Layout(self.pieces, self.axis, flat=True)

    def gather(self, vectors: Tensor) -> Tensor:
        """The group's part of vectors `[dim, k]`, as matrices `[m, n, k]`."""
        found = torch.cat([self._block(piece, vectors) for piece in self.pieces], dim=self.axis)
        return found.reshape(self.size, 1, -1) if self.flat else found

    def scatter(self, matrices: Tensor, into: Tensor) -> None:
        """Write matrices `[m, n, k]` to the group's places in vectors `[dim, k]`."""
        sizes = [piece.columns if self.axis else piece.rows for piece in self.pieces]
        if self.flat:
            shape = Layout(self.pieces, self.axis).shape
            matrices = matrices.reshape(*shape, -1)
        for piece, block in zip(self.pieces, matrices.split(sizes, dim=self.axis), strict=True):
            stored = block.transpose(0, 1) if piece.transposed else block
            into[piece.start : piece.start + piece.size] = stored.reshape(piece.size, -1).to(into.dtype)

    @staticmethod
    def _block(piece: Piece, vectors: Tensor) -> Tensor:
        part = vectors[piece.start : piece.start + piece.size]
        if piece.transposed:
            return part.reshape(piece.columns, piece.rows, -1).transpose(0, 1)
        return part.reshape(piece.rows, piece.columns, -1)
