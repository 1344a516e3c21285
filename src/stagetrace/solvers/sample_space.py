"""`(B' B + D) x = b` for all right-hand sides at once, in the space of the rows of B (Woodbury).

In the metric of the positive diagonal D, with `C = B D^-1/2` and `c = D^-1/2 b`, the answer is `x = D^-1/2 y` where

    (C' C + I) y = c,    y = c - C' (C C' + I)^-1 C c.

C C' is as large as B has rows: an example of a classification with C classes has at most C - 1, and most are small. The
large ones alone are factorised, and the small ones measure what that leaves of each column (`woodbury.py`); where it is
too much it is corrected by conjugate gradients with all rows, preconditioned by the large ones' inverse. Rows too small
even for that are left out, which moves an answer's residual by no more than

    |D^1/2 C_s' C_s y| <= sqrt(max D) (sum of the squared norms of the rows left out) |y|.

That is added to what the others measure; where it is no longer small, since memory held fewer rows, products with the
operator take the rows' place.

Where rows measure, the operator's own products see whether these are its rows. Both are linear, so a product with a
random combination sees all columns (`mixtures.py`): `SURE` times the largest length of what `PROBES` of them show is
added to every residual. Where that is too much for the tolerance, single columns are measured, and the most that one of
these is off by is added to all others. Too far refuses the rows.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import Factor, LinearOperator, Rows
from stagetrace.solvers.base import ColumnSolutions, Status
from stagetrace.solvers.iteration import Report
from stagetrace.solvers.mixtures import PROBES, SURE, mixtures
from stagetrace.solvers.vectors import lengths, spanned
from stagetrace.solvers.woodbury import SAMPLED, RowsUnfitError, Woodbury, counted

__all__ = ["CHECKED", "NETWORK", "RowsUnfitError", "SampleSpace"]

CHECKED = 8
"""Columns that the operator itself measures where the combinations do not decide."""

NETWORK = 3.0
"""Seconds of a floating-point operation in a network's passes over those in a large matrix product."""

HIGHEST = 3.0
"""How far below the tolerance the squared norms of the rows must lie that are left out for want of memory."""

LEFT_OUT = 0.01
"""Of the tolerance: what the rows left out altogether may add to a residual, while memory suffices."""


@final
@dataclass(frozen=True)
class SampleSpace:
    """`(G + damping I) x = b` for a G with a factor.

    memory: bytes for the rows, and again for a block of columns.
    """

    operator: LinearOperator
    factor: Factor
    damping: float
    rtol: float
    memory: int

    def rows(self) -> Rows:
        """The rows in the metric of the diagonal, the largest first, without those that are small even together.

        Raises:
            RowsUnfitError: they take more memory, or the diagonal is not positive.
            SolveError: a loss is not convex, so that there are none.
        """
        weights = self.factor.diagonal + self.damping
        if not bool((weights > 0).all()):
            raise RowsUnfitError("the diagonal beside the rows is not positive; damp the system")
        level = LEFT_OUT * self.rtol / max(1, self.factor.most_rows)
        rows = self.factor.rows(weights.rsqrt(), level, max(level, self.rtol / HIGHEST), self.memory)
        if rows is None:
            raise RowsUnfitError(f"its rows take more than {self.memory:,} bytes")
        return rows.sorted(LEFT_OUT * self.rtol)

    def operations(self, rows: Rows, columns: int) -> float:
        """Floating-point operations of a solve for so many columns, once the rows are there."""
        return min(counted(rows.squares, self.rtol, columns, rows.matrix.shape[1]))[0]

    def solve(self, rows: Rows, columns: Tensor, report: Report) -> ColumnSolutions:
        """The solutions for `columns` `[dim, k]`, none of them zero.

        Raises:
            RowsUnfitError: the rows' Gram matrix has no Cholesky factor, or the operator measures other residuals than
                they do.
        """
        k = columns.shape[1]
        weights = self.factor.diagonal + self.damping
        root = weights.sqrt().unsqueeze(1)
        complete = rows.left_out <= 0.1 * self.rtol
        apply = None if complete else lambda y: (self.operator @ (y / root) + self.damping * (y / root)) / root
        woodbury = Woodbury(rows.matrix, rows.squares, root, self.rtol, rows.shares, apply)
        sizes = lengths(columns)
        some = [place * k // min(k, SAMPLED) for place in range(min(k, SAMPLED))]
        woodbury.fit(k, columns[:, some] / root, sizes[some])
        values, left, residuals, bounds = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
        size = max(1, self.memory // (8 * columns.shape[0] * columns.element_size()))
        for b, own in zip(columns.split(size, dim=1), sizes.split(size), strict=True):
            y, r = woodbury.solved(b / root, own)
            bounds.append(float(weights.max()) ** 0.5 * rows.left_out * lengths(y) / own)
            residuals.append(lengths(r, root) / own)
            values.append(y.div_(root))
            left.append(r.mul_(root))
            report(sum(map(len, residuals)), float(residuals[-1].max()))
        x, remainders = _joined(values), _joined(left)
        measured, how = torch.cat(residuals), "by products with G"
        if complete:
            measured, checks, how = self._looked_at(columns, x, remainders, sizes, measured + torch.cat(bounds))
            woodbury.checks += checks
            how = f"by all rows but small ones that add at most {float(torch.cat(bounds).max()):.0e}, {how}"
        found = tuple(measured.tolist())
        note = (
            f"{k:,} right-hand sides were solved together in the space of {woodbury.large:,} of "
            f"{self.factor.most_rows:,} rows of G, residuals measured {how}"
        )
        return ColumnSolutions(
            value=x,
            residuals=found,
            statuses=tuple(Status.CONVERGED if each <= self.rtol else Status.STAGNATED for each in found),
            products=woodbury.products,
            checks=woodbury.checks,
            steps=1 + woodbury.steps,
            tolerance=self.rtol,
            notes=(note,),
        )

    def _looked_at(
        self, b: Tensor, x: Tensor, remainders: Tensor, sizes: Tensor, residuals: Tensor
    ) -> tuple[Tensor, int, str]:
        """Residuals with what the operator's products add to them, these products' number, and how in words.

        Raises:
            RowsUnfitError: rows and products differ by too much.
        """
        k, mixed = len(sizes), 0.0
        allowed = max(self.rtol / 2, self.operator.rounding**0.5)
        if k > CHECKED:
            mix = mixtures(sizes, b)
            b_mixed, x_mixed, left = (spanned(columns.mT, mix) for columns in (b, x, remainders))
            mixed = float(lengths(self._left(b_mixed, x_mixed) - left).max())
            if float(residuals.max()) + SURE * mixed <= self.rtol:
                words = f"{PROBES} random combinations of the columns by products with G too, which adds "
                return residuals + SURE * mixed, PROBES, f"{words}{SURE * mixed:.0e}"
        chosen = _spread(residuals)
        true = self._left(b[:, chosen], x[:, chosen])
        apart = float((lengths(true - remainders[:, chosen]) / sizes[chosen]).max())
        # what the combinations show is no more than if all columns were off by so much
        if not (apart <= allowed and mixed <= max(allowed, SURE * apart * k**0.5)):
            raise RowsUnfitError(f"its rows and its products differ by {max(apart, mixed):.1e} of a right-hand side")
        residuals = residuals + apart
        residuals[chosen] = lengths(true) / sizes[chosen]
        words = f"of {len(chosen):,} by products with G too, which agreed to {apart:.0e}"
        return residuals, len(chosen) + (PROBES if k > CHECKED else 0), words

    def _left(self, b: Tensor, x: Tensor) -> Tensor:
        """`b - (G + damping I) x` by the operator's products."""
        return b - self.operator @ x - self.damping * x


def _joined(blocks: list[Tensor]) -> Tensor:
    return torch.cat(blocks, dim=1) if blocks[1:] else blocks[0]


def _spread(residuals: Tensor) -> list[int]:
    """`CHECKED` columns: the worst ones, and others spread over all."""
    number = min(len(residuals), CHECKED)
    worst = residuals.argsort(descending=True)[: -(-number // 2)].tolist()
    others = [j for j in range(len(residuals)) if j not in set(worst)]
    left = number - len(worst)
    return sorted([*worst, *(others[place * len(others) // left] for place in range(left))])
