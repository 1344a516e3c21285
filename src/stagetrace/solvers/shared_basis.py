"""One Krylov basis for many right-hand sides of `(H + lambda I) x = b`, H + lambda I positive definite.

A Lanczos run from a random combination of the right-hand sides gives orthonormal Q and `T = Q' H Q`. With it each
column begins where the basis can bring it (Galerkin), and goes on by conjugate gradients for the rest (deflation):

    x_0 = Q (T + lambda I)^-1 Q' b,    M^-1 = Q (T + lambda I)^-1 Q' + (1/c) (I - Q Q').

What Q does not hold has eigenvalues of `H + lambda I` from lambda to `mu + lambda`, with mu the largest Ritz value
that has not settled: c is their geometric mean, so that M^-1 leaves them on both sides of 1, where it puts all others.
Were c lambda, a few large ones that Q missed would be magnified; so the start leaves the outside alone altogether.

How long the basis is to be is counted. A column of its own takes s products, which the run itself tells: after s steps
its own right-hand side is solved. After m steps a column is expected to take at most `sqrt(1 + mu/lambda) / 2
log(2 / rtol)` more, so k columns take m + k times that. The run ends when that total no longer falls; where it is not
below k s by then, the columns are left to themselves.

Source: Saad, Yeung, Erhel & Guyomarc'h (2000) for deflated conjugate gradients; Parlett (1998) for the bounds of Ritz
values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log
from typing import cast, final

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve, solveh_banded
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.curvature.shares import Shares
from stagetrace.solvers.base import ColumnSolutions, Status, counted_from
from stagetrace.solvers.basis import Basis
from stagetrace.solvers.batched import run_batched
from stagetrace.solvers.conjugate_gradients import CGResult, CGSettings, conjugate_gradients
from stagetrace.solvers.iteration import Iteration, Matvec, Report
from stagetrace.solvers.numerics import stack_columns
from stagetrace.solvers.recurrence import Recurrence, Tridiagonal
from stagetrace.solvers.system import Spectrum
from stagetrace.solvers.vectors import lengths, norm, spanned

__all__ = ["Deflation", "NoSharedBasisError", "SharedBasis"]

SETTLED = 0.1
"""How large the residual of a settled Ritz pair may be, over its value and lambda."""

LOOKED = 5
"""Steps of the run after which its length is thought over."""

PATIENCE = 0.1
"""Of the products that the columns would take by themselves: how many may be spent before anything is saved."""

CG_VECTORS, GROUP = 8, 128
"""Vectors that a column's conjugate gradients hold, and the most columns in step with one another: each makes and drops
vectors of its own, which is little for a few and leaves the memory in pieces for thousands."""


@final
class NoSharedBasisError(Exception):
    """The columns are better left to themselves; products: what finding that out took."""

    def __init__(self, why: str, products: int) -> None:
        super().__init__(why)
        self.products = products


@final
class Deflation(LinearOperator):
    """`Q (T + lambda I)^-1 Q' + (1/outside) (I - Q Q')`; outside may be infinite: the Galerkin part alone.

    Example:
        >>> from stagetrace.solvers.basis import Basis
        >>> basis = Basis(torch.zeros(2).double(), 1)
        >>> basis.keep(torch.tensor([1.0, 0.0], dtype=torch.float64))
        >>> Deflation(basis, np.array([[3.0]]), 1.0, outside=2.0) @ torch.ones(2, dtype=torch.float64)
        tensor([0.2500, 0.5000], dtype=torch.float64)
    """

    def __init__(self, basis: Basis, T: np.ndarray, damping: float, outside: float) -> None:
        like = basis.like
        self.size, self.dtype, self.device = like.numel(), like.dtype, like.device
        self.basis, self.outside = basis, outside
        self._factor = cho_factor(T + damping * np.eye(len(T)))

    def apply(self, vectors: Tensor) -> Tensor:
        within = self.basis.coordinates(vectors)
        solved = torch.from_numpy(np.asarray(cho_solve(self._factor, within.double().cpu().numpy())))
        solved = solved.to(vectors.device, vectors.dtype)
        if self.outside == inf:
            return self.basis.vectors(solved)
        return vectors / self.outside + self.basis.vectors(solved - within / self.outside)


@final
@dataclass(frozen=True)
class SharedBasis:
    """`(H + damping I) x = b`, all columns by one basis.

    memory: bytes of each process for its part of the basis, and again for groups of columns. forced: share whatever
        the count says.
    """

    operator: LinearOperator
    damping: float
    rtol: float
    max_steps: int
    memory: int
    forced: bool = False

    def solve(self, columns: Tensor, report: Report) -> ColumnSolutions:
        """The solutions for `columns` `[dim, k]`, none of them zero.

        Raises:
            NoSharedBasisError: they are better left to themselves, or H + damping I is not positive definite.
        """
        bytes_each = columns.shape[0] * columns.element_size()
        shares = self.operator.shares
        piece = shares.largest_piece(columns.shape[0]) * columns.element_size()
        limit = min(self.max_steps, columns.shape[0], (self.memory - 2 * bytes_each) // piece)
        if limit < 1:
            raise NoSharedBasisError(f"no basis fits into {self.memory:,} bytes", 0)
        run = _SharedRun(columns, self.damping, self.rtol, limit, shares)
        products = run_batched(self.operator, [run.steps()], report).products
        trouble = run.trouble(forced=self.forced)
        if trouble:
            raise NoSharedBasisError(trouble, products)
        T = run.matrix
        start = Deflation(run.basis, T, self.damping, inf)
        settings = CGSettings(
            self.rtol, self.max_steps, self.damping, Deflation(run.basis, T, self.damping, run.outside)
        )
        ends, checks = list[CGResult](), 0
        for group in columns.split(max(1, min(GROUP, self.memory // (CG_VECTORS * bytes_each))), dim=1):
            begun = start.apply(group)
            iterations = [
                conjugate_gradients(b, settings, x) for b, x in zip(group.unbind(1), begun.unbind(1), strict=True)
            ]
            finished = run_batched(self.operator, iterations, counted_from(report, run.made))
            ends += finished.outcomes
            products, checks = products + finished.products, checks + finished.checks
        if any(end.status is Status.INDEFINITE for end in ends):
            raise NoSharedBasisError("H + damping I is not positive definite", products + checks)
        return self._found(columns, ends, run, products, checks)

    def _found(
        self, columns: Tensor, ends: Sequence[CGResult], run: "_SharedRun", products: int, checks: int
    ) -> ColumnSolutions:
        steps = [end.steps for end in ends]
        note = (
            f"{columns.shape[1]:,} right-hand sides shared one Krylov basis of {run.made} products, then took "
            f"{sum(steps) / len(steps):.1f} each instead of about {run.alone}; every column's residual was measured"
        )
        return ColumnSolutions(
            value=stack_columns([end.value for end in ends], columns),
            residuals=tuple(end.residual for end in ends),
            statuses=tuple(end.status for end in ends),
            products=products,
            checks=checks,
            steps=run.made + max(steps),
            tolerance=self.rtol,
            spectrum=Spectrum(run.T.ritz()),
            notes=(note, *dict.fromkeys(note for end in ends for note in end.notes)),
        )


@final
@dataclass(frozen=True)
class _Made:
    residual: float


@final
class _SharedRun:
    """The run from a random combination of the columns, and what it tells of them.

    alone: steps after which a column by itself is solved. made: steps so far. outside: the c of `Deflation`.
    """

    def __init__(self, columns: Tensor, damping: float, rtol: float, limit: int, shares: Shares) -> None:
        generator = torch.Generator().manual_seed(0)
        sizes = lengths(columns).to(columns.device, columns.dtype)
        drawn = torch.randn(columns.shape[1], generator=generator).to(columns.device, columns.dtype)
        start = spanned(columns.mT, (drawn / sizes).unsqueeze(1)).squeeze(1)
        self.columns, self.damping, self.rtol, self.limit = columns.shape[1], damping, rtol, limit
        self.basis = Basis(start, limit, shares)
        self._run = Recurrence(start, norm(start), self.basis)
        self.alone: int | None = None
        self._totals = list[tuple[int, float]]()

    @property
    def T(self) -> Tridiagonal:
        return self._run.T

    @property
    def made(self) -> int:
        return len(self.T.alphas)

    @property
    def matrix(self) -> np.ndarray:
        """T, dense."""
        beside = self.T.betas[:-1]
        return np.diag(self.T.alphas) + np.diag(beside, 1) + np.diag(beside, -1)

    @property
    def outside(self) -> float:
        return (self.damping * (self._unsettled + self.damping)) ** 0.5 or 1.0

    def steps(self) -> Iteration[_Made]:
        residual = 1.0
        while self.made < self.limit and not self._run.exhausted:
            self._run.advance((yield Matvec(self._run.q, residual)))
            residual = self._residual()
            if self.alone is None and residual <= self.rtol:
                self.alone = self.made
            if self.alone is not None and self.made % LOOKED == 0:
                self._totals.append((self.made, self._total()))
                if self._enough():
                    break
        if self.alone is None:
            self.alone = self.made
        return _Made(residual)

    def trouble(self, *, forced: bool) -> str | None:
        """Why nothing is shared; None if it is."""
        values = self.T.ritz()
        if values[0] + self.damping <= self._run.level:
            return (
                f"H + {self.damping:g} I has the Ritz value {values[0] + self.damping:.2g}: it is not positive definite"
            )
        if forced or self._run.exhausted or self._total() < self.columns * self._alone:
            return None
        return f"a basis of {self.made} products would save none of about {self._alone} a column"

    @property
    def _alone(self) -> int:
        return self.made if self.alone is None else self.alone

    def _residual(self) -> float:
        """Of the run's own right-hand side: `beta_m |last entry of (T + lambda I)^-1 e_1|` (Saad 2003, section 6.7)."""
        if self.made == 1:
            shifted = self.T.alphas[0] + self.damping
            return self.T.betas[0] / shifted if shifted > 0 else inf
        bands = np.zeros((2, self.made))
        bands[0, 1:] = self.T.betas[:-1]
        bands[1] = np.array(self.T.alphas) + self.damping
        first = np.zeros(self.made)
        first[0] = 1.0
        try:
            return self.T.betas[-1] * abs(float(cast("np.ndarray", solveh_banded(bands, first))[-1]))
        except np.linalg.LinAlgError:  # not positive definite, or not yet told apart from it
            return inf

    @property
    def _unsettled(self) -> float:
        """The largest Ritz value whose pair has not settled."""
        values, vectors = self.T.pairs()
        bounds = self.T.betas[-1] * abs(vectors[-1])
        open = values[bounds > SETTLED * (values + self.damping)]
        return max(0.0, float(open.max())) if len(open) else 0.0

    def _total(self) -> float:
        """Products by count: the basis, and what is left of every column."""
        smallest = self.damping or max(self.T.ritz()[0], self._run.level)
        bound = (1 + self._unsettled / smallest) ** 0.5 / 2 * log(2 / self.rtol)
        return self.made + self.columns * min(bound, self._alone)

    def _enough(self) -> bool:
        best_at, best = min(self._totals, key=lambda total: total[1])
        if best < self.columns * self._alone:
            return self.made - best_at >= 2 * LOOKED
        return self.made >= PATIENCE * self.columns * self._alone
