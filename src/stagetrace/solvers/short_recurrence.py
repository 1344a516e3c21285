"""Lanczos with a few vectors in memory, for when the basis does not fit.

The full basis forms `x = Re(Q y)` at the end, with `R y = t`. Here the product is taken the other way round,
`z = (Q R^-1) t = W t`: R has three diagonals, so the columns of W obey

    w_k = (q_k - r_{k-1,k} w_{k-1} - r_{k-2,k} w_{k-2}) / r_kk,        z_k = z_{k-1} + t_k w_k

and no earlier vector is needed. For `s = i sqrt(lambda)` the w are complex though H and the q are real, and
`x = Re z` is the Tikhonov answer, since `(H^2 + lambda I)^-1 H = Re (H + i sqrt(lambda) I)^-1`; for real `s` all
is real and this is MINRES. In exact arithmetic the answer is that of the full basis. In floating point the q lose their
orthogonality: some more steps, repeated Ritz values, and in float32 a higher floor for the residual.

Source: Paige & Saunders (1975), with a complex shift.
"""

from typing import final

import torch
from torch import Tensor

from stagetrace.solvers.shifted_qr import Column, ShiftedQR

# Vectors of the run (q, the one before, the product, two temporaries), and per shift x and three complex ones.
VECTORS_PER_RUN = 5
VECTORS_PER_SHIFT = 7


@final
class ShortRecurrence:
    """The last two directions `w` and the solution `x`, for each of several shifts."""

    def __init__(self, like: Tensor, shifts: int, *, complex_valued: bool) -> None:
        zero = torch.zeros_like(like, dtype=like.dtype.to_complex() if complex_valued else like.dtype)
        self._complex = complex_valued
        self._answers = [torch.zeros_like(like) for _ in range(shifts)]
        self._last = [(zero, zero)] * shifts

    @property
    def full(self) -> bool:
        """Never: without orthogonality a run may need more steps than there are dimensions."""
        return False

    def keep(self, q: Tensor) -> None:
        """Nothing: no basis vector is stored."""
        del q

    def orthogonalise(self, w: Tensor) -> Tensor:
        """Unchanged: the recurrence alone makes it orthogonal, up to rounding."""
        return w

    def update(self, j: int, q: Tensor, column: Column) -> None:
        """Add the step along `q` to the solution for shift `j`."""
        super2, super1, diagonal, rotated_rhs = (entry if self._complex else entry.real for entry in column)
        older, last = self._last[j]
        direction = (q - super1 * last - super2 * older) / diagonal  # w_k
        self._last[j] = (last, direction)
        step = rotated_rhs * direction  # t_k w_k
        self._answers[j] += step.real if self._complex else step

    def solution(self, j: int, system: ShiftedQR) -> Tensor:
        del system
        return self._answers[j]
