"""`(B' B + D) x = b` for all right-hand sides at once, in the space of the rows of B (Woodbury).

In the metric of the positive diagonal D, with `C = B D^-1/2` and `c = D^-1/2 b`, the answer is `x = D^-1/2 y` where

    (C' C + I) y = c,    y = c - C' (C C' + I)^-1 C c.

C C' is as large as B has rows: an example of a classification with C classes has at most C - 1, and most are small. The
large ones alone are factorised; what they leave is corrected by conjugate gradients with all rows, preconditioned by
the large ones' inverse. Rows too small even for that are left out, which moves an answer's residual by no more than

    |D^1/2 C_s' C_s y| <= sqrt(max D) (sum of the squared norms of the rows left out) |y|.

Several processes share the work as they share the rows: each holds those of its examples and multiplies with them. The
Gram matrix is made by showing each process's large rows to the others in turn; it is whole, with its factor, in all.

That is added to what the others measure; where it is no longer small, since memory held fewer rows, products with the
operator take the rows' place. Where rows measure, the operator's own products look at some of the columns too
(`CHECKED`): by how far the two differ there is added to the residuals of all others, and too far refuses the rows.

Source: Woodbury (1950); Hager (1989) for the uses of the formula.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import Factor, LinearOperator, Rows
from stagetrace.errors import SolveError
from stagetrace.solvers.base import ColumnSolutions, Status
from stagetrace.solvers.iteration import Report
from stagetrace.solvers.vectors import dots, gram, inner, lengths, spanned

__all__ = ["CHECKED", "NETWORK", "RowsUnfitError", "SampleSpace"]

CHECKED = 8
"""Columns that the operator itself measures, too, at least; more while they take less than a tenth of the work."""

NETWORK = 3.0
"""Seconds of a floating-point operation in a network's passes over those in a large matrix product."""

AIMS = ((0, 25.0), (1, 8.0), (2, 3.0))
"""Corrections, and how far below the tolerance the squared norms of the rows must lie that are left to them."""

TRUSTED = 2
"""Corrections after which the remainder, which was measured before them, is taken for that after them."""

CORRECTIONS = 30
"""Corrections after which a column is given up."""

LEFT_OUT = 0.01
"""Of the tolerance: what the rows left out altogether may add to a residual, while memory suffices."""


@final
class RowsUnfitError(SolveError):
    """The rows cannot be used: they do not fit, or are not the operator's."""


@final
@dataclass(frozen=True)
class SampleSpace:
    """`(G + damping I) x = b` for a G with a factor.

    memory: bytes of each process for its rows, and again for a block of columns.
    """

    operator: LinearOperator
    factor: Factor
    damping: float
    rtol: float
    memory: int

    def rows(self) -> Rows:
        """The rows in the metric of the diagonal, without those that are small even together.

        Raises:
            RowsUnfitError: they take more memory, or the diagonal is not positive.
            SolveError: a loss is not convex, so that there are none.
        """
        weights = self.factor.diagonal + self.damping
        if not bool((weights > 0).all()):
            raise RowsUnfitError("the diagonal beside the rows is not positive; damp the system")
        level = LEFT_OUT * self.rtol / max(1, self.factor.most_rows)
        rows = self.factor.rows(weights.rsqrt(), level, max(level, self.rtol / AIMS[-1][1]), self.memory)
        if rows is None:
            raise RowsUnfitError(f"its rows take more than {self.memory:,} bytes")
        return rows

    def operations(self, rows: Rows, columns: int) -> float:
        """Floating-point operations of a solve for so many columns, once the rows are there."""
        return min(_counted(rows.squares, self.rtol, columns, rows.matrix.shape[1]))[0]

    def solve(self, rows: Rows, columns: Tensor, report: Report) -> ColumnSolutions:
        """The solutions for `columns` `[dim, k]`, none of them zero.

        Raises:
            RowsUnfitError: the rows' Gram matrix has no Cholesky factor, or the operator measures other residuals than
                they do.
        """
        weights = self.factor.diagonal + self.damping
        root = weights.sqrt().unsqueeze(1)
        complete = rows.left_out <= 0.1 * self.rtol
        apply = None if complete else lambda y: (self.operator @ (y / root) + self.damping * (y / root)) / root
        woodbury = Woodbury.of(rows, root, self.rtol, columns.shape[1], apply)
        values, remainders = torch.empty_like(columns), torch.empty_like(columns)
        bounds = list[float]()
        size = max(1, self.memory // (8 * columns.shape[0] * columns.element_size()))
        for start in range(0, columns.shape[1], size):
            here = slice(start, start + size)
            y, r = woodbury.solved(columns[:, here] / root, lengths(columns[:, here]))
            values[:, here], remainders[:, here] = y / root, root * r
            bounds += (float(weights.max()) ** 0.5 * rows.left_out * lengths(y)).tolist()
            report(start + y.shape[1], float((lengths(root * r) / lengths(columns[:, here])).max()))
        return self._measured(columns, values, remainders, torch.tensor(bounds), woodbury)

    def _measured(
        self, b: Tensor, x: Tensor, remainders: Tensor, bounds: Tensor, woodbury: "Woodbury"
    ) -> ColumnSolutions:
        """Every column's residual; those that rows measured are looked at by the operator, on some of the columns."""
        sizes = lengths(b)
        residuals, checks, how = lengths(remainders) / sizes, woodbury.checks, "by products with G"
        if woodbury.complete:
            left_out = float((bounds / sizes).max())
            residuals = residuals + bounds / sizes
            chosen = self._chosen(residuals, woodbury)
            true = b[:, chosen] - self.operator @ x[:, chosen] - self.damping * x[:, chosen]
            apart = float((lengths(true - remainders[:, chosen]) / sizes[chosen]).max())
            if not apart <= max(self.rtol / 2, self.operator.rounding**0.5):
                raise RowsUnfitError(f"its rows and its products differ by {apart:.1e} of a right-hand side")
            residuals += apart
            residuals[chosen] = lengths(true) / sizes[chosen]
            checks += len(chosen)
            how = (
                f"by all rows but small ones that add at most {left_out:.0e}, of {len(chosen):,} by products with G "
                f"too, which agreed to {apart:.0e}"
            )
        found = tuple(residuals.tolist())
        note = (
            f"{b.shape[1]:,} right-hand sides were solved together in the space of {woodbury.large:,} of "
            f"{self.factor.most_rows:,} rows of G, residuals measured {how}"
        )
        return ColumnSolutions(
            value=x,
            residuals=found,
            statuses=tuple(Status.CONVERGED if each <= self.rtol else Status.STAGNATED for each in found),
            products=woodbury.products,
            checks=checks,
            steps=1 + woodbury.steps,
            tolerance=self.rtol,
            notes=(note,),
        )

    def _chosen(self, residuals: Tensor, woodbury: "Woodbury") -> list[int]:
        """The worst columns, and others spread over all."""
        k = len(residuals)
        number = min(k, max(CHECKED, int(0.1 * woodbury.operations / max(1.0, NETWORK * self.factor.product))))
        worst = residuals.argsort(descending=True)[: -(-number // 2)].tolist()
        others = [j for j in range(k) if j not in set(worst)]
        left = number - len(worst)
        return sorted([*worst, *(others[place * len(others) // left] for place in range(left))])


@final
@dataclass(frozen=True, eq=False)
class _Large:
    """The rows above a squared norm: this process's, where they are among all, and the number of all."""

    rows: Tensor
    here: slice
    number: int

    @staticmethod
    def of(found: Rows, above: float) -> "_Large":
        large = found.squares > above
        mine, first = large[found.here], int(large[: found.first].sum())
        return _Large(found.matrix[mine], slice(first, first + int(mine.sum())), int(large.sum()))


@final
class Woodbury:
    """The inverse by the large rows, and conjugate gradients with all of them, for blocks of columns.

    products, checks: with all rows or with the operator, over all columns, to correct and to measure.
    steps: the most corrections that a column took. operations: floating-point operations by count.
    """

    def __init__(
        self,
        rows: Rows,
        large: "_Large",
        factor: Tensor,
        root: Tensor,
        rtol: float,
        apply: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self._rows, self._large, self._factor, self._shares = rows.matrix, large.rows, factor, rows.shares
        self._mine, self._all = large.here, len(rows.squares)
        self._root, self._rtol, self._apply = root, rtol, apply or self._by_rows
        self.large, self.complete = large.number, False
        self.products = self.checks = self.steps = 0
        self.operations = gram_operations(self.large, self._large.shape[1])

    @staticmethod
    def of(
        found: Rows, root: Tensor, rtol: float, columns: int, apply: Callable[[Tensor], Tensor] | None
    ) -> "Woodbury":
        """root: `D^1/2`, `[dim, 1]`. apply: `(C'C + I) y`; None: all rows are there to do it."""
        _, aim = min(_counted(found.squares, rtol, columns, found.matrix.shape[1]))
        large = _Large.of(found, aim)
        products = found.shares.joined(torch.cat([gram(large.rows, each) for each in found.shares.each(large.rows)], 1))
        products.diagonal().add_(1.0)
        factor, failed = torch.linalg.cholesky_ex(products)
        if int(failed) or not bool(torch.isfinite(factor).all()):
            raise RowsUnfitError("the Gram matrix of its rows has no Cholesky factor")
        made = Woodbury(found, large, factor, root, rtol, apply)
        made.complete = apply is None
        return made

    def solved(self, c: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """`y` and `c - (C'C + I) y`; sizes: what residuals `|D^1/2 r|` are relative to, `[k]`."""
        aim = 0.9 * self._rtol * sizes
        y = self._inverse(c)
        r = c - self._measure(y)
        live, steps = (lengths(self._root * r) > aim).nonzero().flatten().to(c.device), 0
        p = z = self._inverse(r[:, live])
        rz = dots(r[:, live], z)
        while len(live) and steps < CORRECTIONS:
            steps += 1
            Ap = self._multiply(p)
            a = rz / dots(p, Ap)  # a = r'z / p'Ap
            y[:, live] += a * p
            r[:, live] -= a * Ap
            open = (lengths(self._root * r[:, live]) > aim[live.cpu()]).nonzero().flatten().to(c.device)
            live, p, rz = live[open], p[:, open], rz[open]
            if len(live):
                z = self._inverse(r[:, live])
                rz, before = dots(r[:, live], z), rz
                p = z + (rz / before) * p  # p = z + b p
        self.steps = max(self.steps, steps)
        # after many steps what the recurrence carries along is not what is left
        return y, (c - self._measure(y) if steps > TRUSTED else r)

    def _inverse(self, c: Tensor) -> Tensor:
        """`(C_l' C_l + I)^-1 c`."""
        self.operations += 4.0 * c.numel() * self.large
        solved = torch.cholesky_solve(self._shares.joined(inner(self._large, c)).double(), self._factor)
        return c - self._shares.summed(spanned(self._large, solved[self._mine].to(c.dtype)))

    def _by_rows(self, y: Tensor) -> Tensor:
        """`(C' C + I) y`."""
        return self._shares.summed(spanned(self._rows, inner(self._rows, y))) + y

    def _measure(self, y: Tensor) -> Tensor:
        self.checks += y.shape[1]
        return self._counted(y)

    def _multiply(self, y: Tensor) -> Tensor:
        self.products += y.shape[1]
        return self._counted(y)

    def _counted(self, y: Tensor) -> Tensor:
        self.operations += 4.0 * y.numel() * self._all
        return self._apply(y)


def _counted(norms: Tensor, rtol: float, columns: int, dim: int) -> list[tuple[float, float]]:
    """For each of `AIMS` the operations of a solve, and the squared norm above which rows are large."""
    found = list[tuple[float, float]]()
    for steps, below in AIMS:
        large = int((norms > rtol / below).sum())
        passes = 4.0 * dim * columns * (large + len(norms)) * (1 + steps)
        found.append((gram_operations(large, dim) + passes, rtol / below))
    return found


def gram_operations(rows: int, dim: int) -> float:
    """Floating-point operations of a Gram matrix and its Cholesky factor."""
    return 2.0 * rows**2 * dim + rows**3 / 3
