"""The full Lanczos basis: every vector is stored, so that the run stays orthogonal to rounding.

Where several processes solve together each stores the same entries of every vector, its piece: the basis is by far the
largest thing that a solve holds. Vectors that come in or go out are whole, and the same in all processes. Orthogonal
once more is two sums over processes and a vector put together, however many vectors are stored.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.shares import ALONE, Shares
from stagetrace.solvers.shifted_qr import Column, ShiftedQR
from stagetrace.solvers.vectors import combine, inner, room, spanned, without

# The basis grows by blocks of this many vectors: nothing is copied on growth and little allocated in vain.
BLOCK = 32


@final
class Basis:
    """Orthonormal vectors `[dim]`, at most `limit`, stored as the rows of a few matrices; shares: among whom.

    Example:
        >>> import torch
        >>> basis = Basis(torch.zeros(2, dtype=torch.float64), limit=2)
        >>> basis.keep(torch.tensor([0.6, 0.8], dtype=torch.float64))
        >>> basis.orthogonalise(torch.tensor([1.0, 0.0], dtype=torch.float64))
        tensor([ 0.6400, -0.4800], dtype=torch.float64)
    """

    def __init__(self, like: Tensor, limit: int, shares: Shares = ALONE) -> None:
        self._like, self._limit, self._shares = like, limit, shares
        self._here = shares.piece(like.numel())
        self._blocks: list[Tensor] = []
        self._size = 0

    @property
    def like(self) -> Tensor:
        """A tensor of the vectors' shape, dtype and device."""
        return self._like

    @property
    def entries(self) -> int:
        """How many numbers this process holds for the basis."""
        return sum(block.numel() for block in self._blocks)

    @property
    def full(self) -> bool:
        return self._size == self._shares.dimension(self._like.numel())

    def keep(self, q: Tensor) -> None:
        if self._size % BLOCK == 0:
            rows = min(BLOCK, self._limit - self._size)
            self._blocks.append(room(rows, self._like[self._here]))
        self._blocks[-1][self._size % BLOCK] = q[self._here]
        self._size += 1

    def orthogonalise(self, w: Tensor) -> Tensor:
        # Twice is enough (Parlett 1998, after Kahan): once leaves what cancellation in the first pass amplified.
        piece, summed = w[self._here], self._shares.summed
        for _ in range(2):
            piece = without(piece, self._filled(), summed)
        return self._shares.whole(piece, w.numel())

    def update(self, j: int, q: Tensor, column: Column) -> None:
        """Nothing: the solutions are formed at the end, from the whole basis."""
        del j, q, column

    def solution(self, j: int, system: ShiftedQR) -> Tensor:
        """`Q Re y`."""
        del j
        return self.combine(system.coordinates())

    def combine(self, coordinates: Sequence[float]) -> Tensor:
        """The sum of the first vectors, each times its coordinate, added up in float64.

        Rounding here would be multiplied by `|H|^2` in the residual; in float32 this halves what is left of it.
        """
        used = -(-len(coordinates) // BLOCK)
        rows = [block[: len(coordinates) - BLOCK * place] for place, block in enumerate(self._blocks[:used])]
        return self._shares.whole(combine(rows, coordinates, self._like[self._here]), self._like.numel())

    def coordinates(self, columns: Tensor) -> Tensor:
        """`Q' columns`, `[size, k]`."""
        here = columns[self._here]
        return self._shares.summed(torch.cat([inner(rows, here) for rows in self._filled()]))

    def vectors(self, coordinates: Tensor) -> Tensor:
        """`Q coordinates`, `[dim, k]`."""
        parts = coordinates.split([len(rows) for rows in self._filled()])
        total = self._like.new_zeros(self._like[self._here].numel(), coordinates.shape[1])
        for rows, part in zip(self._filled(), parts, strict=True):
            total += spanned(rows, part)
        return self._shares.whole(total, self._like.numel())

    def _filled(self) -> list[Tensor]:
        last = self._size - BLOCK * (len(self._blocks) - 1)
        return [*self._blocks[:-1], self._blocks[-1][:last]]
