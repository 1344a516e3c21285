"""The extreme eigenvalues of an operator, from a short Lanczos run that solves nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import Report, Spectrum, silent
from stagetrace.solvers.filters import Shift
from stagetrace.solvers.krylov import Memory, vectors_of
from stagetrace.solvers.lockstep import Ask, Process, lockstep
from stagetrace.solvers.numerics import norm
from stagetrace.solvers.recurrence import Recurrence

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
    start = torch.randn(operator.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    finished = lockstep(operator, [_run(start.to(operator.device, operator.dtype), steps, enough)], report)
    return Spectrum(finished.outcomes[0].ritz), finished.products


@final
@dataclass(frozen=True)
class _Looked:
    """The Ritz values that a run ended with; it solves nothing, so that there is no residual."""

    ritz: tuple[float, ...]
    residual: float = nan


def _run(start: Tensor, steps: int, enough: Callable[[Sequence[Ends]], bool] | None) -> Process[_Looked]:
    vectors = vectors_of(start, [Shift(0.0)], Memory.plan(start.unsqueeze(1), 1, steps, 2 * 2**30), steps)
    run = Recurrence(start, norm(start), vectors)
    seen: list[Ends] = []
    while len(run.T.alphas) < steps and not run.exhausted:
        run.advance((yield Ask(run.q, nan)))
        if enough is not None and start.numel() > steps:
            seen.append(run.T.ends())
            if enough(seen):
                break
    return _Looked(run.T.ritz())
