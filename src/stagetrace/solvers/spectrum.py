"""The extreme eigenvalues of an operator, from a short Lanczos run that solves nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import Report, Spectrum, silent
from stagetrace.solvers.basis import Basis
from stagetrace.solvers.filters import Shift
from stagetrace.solvers.krylov import Memory, vectors_of
from stagetrace.solvers.lockstep import Ask, Process, lockstep
from stagetrace.solvers.recurrence import Recurrence, Tridiagonal, Vectors
from stagetrace.solvers.vectors import norm

MEMORY = 2 * 2**30
"""Bytes that the basis of a run may take; beyond it the run goes by a short recurrence."""

End = tuple[float, float]
"""An extreme Ritz value, and a bound on how far the operator has an eigenvalue from it."""

Ends = tuple[End, End]
"""The smallest and the largest."""


def extreme_ritz_values(
    operator: LinearOperator,
    steps: int,
    report: Report = silent,
    enough: Callable[[Sequence[Ends]], bool] | None = None,
    seed: int = 0,
) -> tuple[Spectrum, int]:
    """Ritz values of a Lanczos run from a random vector, the same on every machine, and its products.

    enough: whether to stop before `steps`, from the ends after each step so far; not asked where the run can exhaust
        the operator within `steps`.
    """
    start = _start(operator, seed)
    vectors = vectors_of(start, [Shift(0.0)], Memory.plan(start.unsqueeze(1), 1, steps, MEMORY), steps)
    finished = lockstep(operator, [_run(start, steps, vectors, enough)], report)
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
    """The smallest Ritz value of a run from a random vector and its vector, every basis vector kept."""
    start = _start(operator, seed)
    basis = Basis(start, min(steps, operator.size))
    finished = lockstep(operator, [_run(start, steps, basis, None)], silent)
    values, vectors = finished.outcomes[0].T.pairs()
    return Lowest(float(values[0]), basis.combine(vectors[:, 0].tolist()), float(values[-1]), finished.products)


@final
@dataclass(frozen=True)
class _Looked:
    """The projected operator that a run ended with; it solves nothing, so that there is no residual."""

    T: Tridiagonal
    residual: float = nan


def _start(operator: LinearOperator, seed: int) -> Tensor:
    drawn = torch.randn(operator.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(operator.device, operator.dtype)


def _run(
    start: Tensor, steps: int, vectors: Vectors, enough: Callable[[Sequence[Ends]], bool] | None
) -> Process[_Looked]:
    run = Recurrence(start, norm(start), vectors)
    seen: list[Ends] = []
    while len(run.T.alphas) < steps and not run.exhausted:
        run.advance((yield Ask(run.q, nan)))
        if enough is not None and start.numel() > steps:
            seen.append(run.T.ends())
            if enough(seen):
                break
    return _Looked(run.T)
