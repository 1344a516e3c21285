"""The extreme eigenvalues of an operator, from a short Lanczos run without a right-hand side to solve for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.basis import Basis
from stagetrace.solvers.batched import run_batched
from stagetrace.solvers.filters import Shift
from stagetrace.solvers.iteration import Iteration, Matvec, Report, silent
from stagetrace.solvers.krylov import Memory, vectors_of
from stagetrace.solvers.recurrence import LanczosVectors, Recurrence, Tridiagonal
from stagetrace.solvers.system import Spectrum
from stagetrace.solvers.vectors import norm

MEMORY = 2 * 2**30
"""Bytes that the basis of a run may take; beyond it the run uses the short recurrence."""

RitzValue = tuple[float, float]
"""An extreme Ritz value, and a bound on how far the operator has an eigenvalue from it."""

Extremes = tuple[RitzValue, RitzValue]
"""The smallest and the largest Ritz value of a run."""


def extreme_ritz_values(
    operator: LinearOperator,
    steps: int,
    report: Report = silent,
    enough: Callable[[Sequence[Extremes]], bool] | None = None,
    seed: int = 0,
) -> tuple[Spectrum, int]:
    """Ritz values of a Lanczos run from a random vector, the same on every machine, and its products.

    enough: whether to stop before `steps`, given the extremes after each step so far; not asked where `steps` suffice
        to exhaust the operator.
    """
    start = _start(operator, seed)
    memory = Memory.plan(start.unsqueeze(1), 1, steps, MEMORY, operator.shares)
    vectors = vectors_of(start, [Shift(0.0)], memory, steps, operator.shares)
    finished = run_batched(
        operator, [_run(start, steps, vectors, enough, operator.shares.dimension(operator.size))], report
    )
    return Spectrum(finished.outcomes[0].T.ritz()), finished.products


@final
@dataclass(frozen=True)
class Lowest:
    """The smallest Ritz pair of an operator: value, unit vector `[dim]`, and the largest Ritz value beside it."""

    value: float
    vector: Tensor
    largest: float
    products: int


def lowest_ritz_pair(operator: LinearOperator, steps: int, seed: int = 0) -> Lowest:
    """The smallest Ritz value of a run from a random vector, and its Ritz vector; the basis is stored in full."""
    start = _start(operator, seed)
    basis = Basis(start, min(steps, operator.shares.dimension(operator.size)), operator.shares)
    finished = run_batched(operator, [_run(start, steps, basis, None, 0)], silent)
    values, vectors = finished.outcomes[0].T.pairs()
    return Lowest(float(values[0]), basis.combine(vectors[:, 0].tolist()), float(values[-1]), finished.products)


@final
@dataclass(frozen=True)
class _Projected:
    """The projected operator at the end of a run; nothing was solved, so there is no residual."""

    T: Tridiagonal
    residual: float = nan


def _start(operator: LinearOperator, seed: int) -> Tensor:
    shares, generator = operator.shares, torch.Generator().manual_seed(seed)
    drawn = torch.randn(shares.dimension(operator.size), generator=generator, dtype=torch.float64)
    return shares.taken(drawn).to(operator.device, operator.dtype)


def _run(
    start: Tensor,
    steps: int,
    vectors: LanczosVectors,
    enough: Callable[[Sequence[Extremes]], bool] | None,
    dimension: int,
) -> Iteration[_Projected]:
    run = Recurrence(start, norm(start), vectors)
    seen: list[Extremes] = []
    while len(run.T.alphas) < steps and not run.exhausted:
        run.advance((yield Matvec(run.q, nan)))
        if enough is not None and dimension > steps:
            seen.append(run.T.extremes())
            if enough(seen):
                break
    return _Projected(run.T)
