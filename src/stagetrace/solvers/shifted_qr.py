"""The projected problem of a Lanczos run, `min |(T_ + s I_) y - |b| e1|`, solved for one shift while the run goes on.

`T_` is the `[k+1, k]` tridiagonal of a run with `H Q_k = Q_{k+1} T_`, and `s` is real or purely imaginary. QR by
one Givens rotation per column costs O(1) a step, so the residual is known in every step and any number of shifts
can share one run. Two facts let it serve both filters (s = i sigma, sigma = sqrt(lambda)):

(a) `Re y` is the Tikhonov answer. T being symmetric, the cross terms of the normal equations cancel,
    `(T_ + i sigma I_)^H (T_ + i sigma I_) = T_' T_ + lambda I`: real. So `Re y = (T_' T_ + lambda I)^-1 T_' |b| e1`,
    the minimiser of `|T_ y - |b| e1|^2 + lambda |y|^2`.

(b) Its residual in `(H^2 + lambda I) x = H b` is cheap. With `r = b - (H + s I) z` and `x = Re z`,
    `H b - (H^2 + lambda I) x = Re[(H - s I) r] = H Re r + sigma Im r`, for `(H - s I)(H + s I) = H^2 + lambda I`.
    Write `r = Q_{k+1} rho`. Least squares means `(T_ + s I_)^H rho = 0`: these are the first k entries of
    `(H - s I) r` in the basis. Two are left, from the next column of T,

        edge    beta_k rho_k + (alpha_{k+1} - s) rho_{k+1}        beyond    beta_{k+1} rho_{k+1}

    and rho_k, rho_{k+1} follow from the last two rotations. So the residual of the answer in k vectors is exact, at
    no cost: the run makes that product next anyway.

Source: Paige & Saunders (1975) for the QR of T (MINRES); (a) and (b) are derived above.
"""

from math import hypot
from typing import NamedTuple, final


class Column(NamedTuple):
    """Column k of R (its entries in rows k-2, k-1, k), and entry k of the rotated right-hand side."""

    super2: complex
    super1: complex
    diagonal: complex
    rotated_rhs: complex


@final
class ShiftedQR:
    """The QR of `T_ + s I_` for one shift, updated column by column.

    Example:
        >>> system = ShiftedQR(2j, 10.0)  # (T^2 + 4) x = T b for T = [1], b = [10]
        >>> system.tikhonov_residual(1.0, 0.0)   # before any step x = 0, and the residual is T b = 10
        10.0
        >>> _ = system.push(1.0, 0.0)
        >>> system.coordinates()
        [2.0]
    """

    def __init__(self, shift: complex, length: float) -> None:
        self.shift = shift
        self.columns: list[Column] = []
        self._tail = complex(length)
        self._beta = 0.0
        self._older = self._last = (1.0, 0j)

    def pivot(self, alpha: float) -> float:
        """The size of the diagonal of R if the next column were the last: zero means a singular system."""
        return abs(self._rotated(alpha)[2])

    def push(self, alpha: float, beta: float) -> Column:
        """Append the column of T with `alpha` on the diagonal and `beta` below it; returns the new column of R."""
        super2, super1, corner = self._rotated(alpha)
        c, s, diagonal = _rotation(corner, beta)  # [[c, s], [-conj(s), c]] [corner, beta]' = [r_kk, 0]'
        self.columns.append(Column(super2, super1, diagonal, c * self._tail))
        self._tail *= -s.conjugate()  # the entry of the rotated right-hand side below R
        self._older, self._last, self._beta = self._last, (c, s), beta
        return self.columns[-1]

    @property
    def shifted_residual(self) -> float:
        """`|b - (H + s I) z|` of the answer so far."""
        return abs(self._tail)

    def tikhonov_residual(self, alpha: float, beta: float) -> float:
        """`|H Re r + sigma Im r|` of the answer so far, by (b), from the column of T not pushed yet."""
        rho_last = self._last[0] * self._tail  # rho_{k+1}
        rho_before = -self._older[0] * self._last[1] * self._tail  # rho_k
        edge = self._beta * rho_before + (alpha - self.shift) * rho_last  # (b): edge, and beyond = beta_{k+1} rho_{k+1}
        return hypot(edge.real, beta * rho_last.real)

    def coordinates(self) -> list[float]:
        """`Re y` with `R y = t`: the answer in the Lanczos basis, by back substitution through three diagonals."""
        y = [0j] * (len(self.columns) + 2)
        for k in reversed(range(len(self.columns))):
            known = 0j
            if k + 1 < len(self.columns):
                known += self.columns[k + 1].super1 * y[k + 1]
            if k + 2 < len(self.columns):
                known += self.columns[k + 2].super2 * y[k + 2]
            y[k] = (self.columns[k].rotated_rhs - known) / self.columns[k].diagonal
        return [entry.real for entry in y[:-2]]

    def _rotated(self, alpha: float) -> tuple[complex, complex, complex]:
        """The next column of `T_ + s I_` under the last two rotations: rows k-2, k-1 and k."""
        (c_older, s_older), (c_last, s_last) = self._older, self._last
        partly, diagonal = c_older * self._beta, alpha + self.shift
        return (
            s_older * self._beta,
            c_last * partly + s_last * diagonal,
            c_last * diagonal - s_last.conjugate() * partly,
        )


def _rotation(a: complex, b: float) -> tuple[float, complex, complex]:
    """`c` real, `s`, `r` with `[[c, s], [-conj(s), c]] [a, b]' = [r, 0]'`, for real `b >= 0`."""
    if a == 0:
        return 0.0, 1 + 0j, complex(b)
    if b == 0:
        return 1.0, 0j, a
    size = hypot(abs(a), b)
    phase = a / abs(a)
    return abs(a) / size, phase * (b / size), phase * size
