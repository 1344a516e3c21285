"""The inverse of `C'C + I` by the large rows of C, with corrections for what they leave (Woodbury).

    (C_l' C_l + I)^-1 c = c - C_l' (C_l C_l' + I)^-1 C_l c

How many rows are large is counted: a row costs its part of the Gram matrix and of its Cholesky factor, and saves
corrections of columns, each of which takes all rows twice. What a column's residual is with so many rows a few columns
say, spread over all; in proportion to the largest squared norm that is left out it is lower with more. So rows are
added, largest first, while that is expected to pay. The factor grows with them,

    [L         ]                                        '
    [X   chol()],    X = K_21 L^-T,    chol(K_22 - X X'),

and nothing is computed twice. It is held in float64, and so is all that is done with it.

What is left of the equation after the large rows' inverse is `-C_s' C_s y` with the small rows C_s, if rounding is no
matter: the same columns say whether that is so, by all rows. If not, every column is measured by all rows.

Source: Woodbury (1950); Hager (1989) for the uses of the formula; Golub & Van Loan (2013), section 4.2.9, for the
Cholesky factor block by block.
"""

from collections.abc import Callable, Sequence
from math import ceil, log
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import Shares
from stagetrace.errors import SolveError
from stagetrace.solvers.vectors import dots, gram, inner, lengths, spanned

__all__ = ["LEVELS", "RowsUnfitError", "Woodbury", "counted"]

LEVELS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
"""How far below the tolerance the squared norms of the rows may lie that are left to corrections."""

EXPECTED = 5.0
"""A column's residual over the largest squared norm of a row that is left out, before a column has been looked at."""

SAMPLED = 16
"""Columns that say how many rows are large."""

AIM = 0.7
"""Of the tolerance: what is corrected down to, so that what is added to a measured residual has room."""

ROUNDED = 0.02
"""Of the tolerance: what rounding in the large rows' inverse may leave before every column is measured by all rows."""

TRUSTED = 2
"""Corrections after which the remainder, which was measured before them, is taken for that after them."""

CORRECTIONS = 30
"""Corrections after which a column is given up."""

BLOCK = 384
"""Rows of a Gram matrix that are computed together: of each block what lies below the diagonal."""


@final
class RowsUnfitError(SolveError):
    """The rows cannot be used: they do not fit, or are not the operator's."""


@final
class Woodbury:
    """`(C'C + I)^-1` for blocks of columns.

    Args:
        rows: C `[n, dim]`, the largest rows first, and their squared norms `[n]`.
        root: `D^1/2` `[dim, 1]`, the metric of the residuals: `|D^1/2 r|`.
        rtol: their tolerance. apply: `(C'C + I) y` where it takes more than the rows; None: they are all of it.

    large: rows whose inverse is at hand. products, checks: with all rows or with the operator, over all columns, to
    correct and to measure. steps: the most corrections that a column took. operations: floating-point ones, by count.
    """

    def __init__(
        self,
        rows: Tensor,
        squares: Tensor,
        root: Tensor,
        rtol: float,
        shares: Shares,
        apply: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._rows, self._squares, self._shares = rows, squares, shares
        self._root, self._rtol, self._apply = root, rtol, apply or self._by_rows
        self._factor = torch.zeros(0, 0, dtype=torch.float64, device=rows.device)
        self._by_small = False
        self._complete = apply is None
        self.products = self.checks = self.steps = 0
        self.operations = 0.0

    @property
    def large(self) -> int:
        return len(self._factor)

    def fit(self, columns: int, sample: Tensor, sizes: Tensor) -> None:
        """Take as many rows as pay for so many columns; sample: some of them, `[dim, s]`, sizes: as for `solved`.

        Raises:
            RowsUnfitError: the Gram matrix has no Cholesky factor.
        """
        most, level = min(counted(self._squares, self._rtol, columns, len(self._root)))[1:]
        self._grow(most)
        while self._complete:
            y = self._inverse(sample)
            small = self._small(y)
            expected = lengths(small, self._root) / sizes / level
            most, level = min(counted(self._squares, self._rtol, columns, len(self._root), expected, self.large))[1:]
            if most == self.large:
                apart = lengths(sample - self._apply(y) - small, self._root) / sizes
                self._by_small = float(apart.max()) <= ROUNDED * self._rtol
                return
            self._grow(most)

    def solved(self, c: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """`y` and `c - (C'C + I) y`; sizes: what residuals `|D^1/2 r|` are relative to, `[k]`."""
        aim = AIM * self._rtol * sizes
        y = self._inverse(c)
        self.checks += y.shape[1]
        r = self._small(y) if self._by_small else c - self._counted(y)
        live, steps = (lengths(r, self._root) > aim).nonzero().flatten().to(c.device), 0
        corrected = live
        p = z = self._inverse(r[:, live])
        rz = dots(r[:, live], z)
        while len(live) and steps < CORRECTIONS:
            steps += 1
            self.products += p.shape[1]
            Ap = self._counted(p)
            a = rz / dots(p, Ap)  # a = r'z / p'Ap
            y[:, live] += a * p
            r[:, live] -= a * Ap
            open = (lengths(r[:, live], self._root) > aim[live.cpu()]).nonzero().flatten().to(c.device)
            live, p, rz = live[open], p[:, open], rz[open]
            if len(live):
                z = self._inverse(r[:, live])
                rz, before = dots(r[:, live], z), rz
                p = z + (rz / before) * p  # p = z + b p
        self.steps = max(self.steps, steps)
        if steps > TRUSTED:  # after many steps what the recurrence carries along is not what is left
            self.checks += len(corrected)
            r[:, corrected] = c[:, corrected] - self._counted(y[:, corrected])
        return y, r

    def _grow(self, rows: int) -> None:
        """The factor for so many of the largest rows, from that for fewer."""
        start, held = self.large, self._factor
        self.operations += gram_operations(rows, len(self._root)) - gram_operations(start, len(self._root))
        products = self._gram(start, rows)
        products[:, start:].diagonal().add_(1.0)
        beside = torch.linalg.solve_triangular(held, products[:, :start].mT, upper=False).mT
        corner, failed = torch.linalg.cholesky_ex(products[:, start:] - gram(beside, beside))
        if int(failed) or not bool(torch.isfinite(corner).all()):
            raise RowsUnfitError("the Gram matrix of its rows has no Cholesky factor")
        self._factor = held.new_zeros(rows, rows)
        self._factor[:start, :start], self._factor[start:, :start], self._factor[start:, start:] = held, beside, corner

    def _gram(self, start: int, stop: int) -> Tensor:
        """The products of rows from `start` on with those before each, and 0 above the diagonal's blocks."""
        mine = range(stop - start)[self._shares.mine(stop - start)]
        found = torch.zeros(len(mine), stop, dtype=torch.float64, device=self._rows.device)
        for first in range(mine.start, mine.stop, BLOCK):
            last = min(first + BLOCK, mine.stop)
            here = self._rows[start + first : start + last]
            found[first - mine.start : last - mine.start, : start + last] = gram(here, self._rows[: start + last])
        return self._shares.joined(found)

    def _inverse(self, c: Tensor) -> Tensor:
        """`(C_l' C_l + I)^-1 c`."""
        self.operations += 4.0 * c.numel() * self.large
        mine = self._shares.mine(self.large)
        here = self._rows[: self.large][mine]
        solved = torch.cholesky_solve(self._shares.joined(inner(here, c)).double(), self._factor)
        return c - self._shares.summed(spanned(here, solved[mine].to(c.dtype)))

    def _small(self, y: Tensor) -> Tensor:
        """`-C_s' C_s y`: what the small rows leave."""
        self.operations += 4.0 * y.numel() * (len(self._rows) - self.large)
        small = self._rows[self.large :]
        here = small[self._shares.mine(len(small))]
        return self._shares.summed(spanned(here, inner(here, y).neg_()))

    def _by_rows(self, y: Tensor) -> Tensor:
        """`(C' C + I) y`."""
        here = self._rows[self._shares.mine(len(self._rows))]
        return self._shares.summed(spanned(here, inner(here, y))) + y

    def _counted(self, y: Tensor) -> Tensor:
        self.operations += 4.0 * y.numel() * len(self._rows)
        return self._apply(y)


def counted(
    squares: Tensor, rtol: float, columns: int, dim: int, expected: Tensor | None = None, have: int = 0
) -> Sequence[tuple[float, int, float]]:
    """For each of `LEVELS` the operations of a solve, the large rows, and the squared norm above which they are.

    expected: of some columns the residual over that norm. have: rows that are large already.
    """
    expected = torch.full((1,), EXPECTED, dtype=torch.float64) if expected is None else expected
    found = list[tuple[float, int, float]]()
    for below in LEVELS:
        level = rtol / below
        large = int((squares > level).sum())
        if large < have:
            continue
        each = [corrections(value, rtol) for value in (expected * level).tolist()] if large < len(squares) else [0]
        corrected = sum(each) / len(each) * 4.0 * dim * columns * (large + len(squares))
        passes = 4.0 * dim * columns * len(squares)
        found.append((gram_operations(large, dim) + passes + corrected, large, level))
    return found


def corrections(residual: float, rtol: float) -> int:
    """How many a column needs: each multiplies the residual by about itself."""
    if residual <= AIM * rtol:
        return 0
    return min(CORRECTIONS, max(1, ceil(log(AIM * rtol) / log(min(residual, 0.9)) - 1)))


def gram_operations(rows: int, dim: int) -> float:
    """Floating-point operations of one half of a Gram matrix and of its Cholesky factor, in float64."""
    return 1.0 * rows**2 * dim + 2 * rows**3 / 3
