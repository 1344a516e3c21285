"""A damping from the operator itself: what `damping="auto"` means.

Where a stage is at a strict minimum its curvature is positive and the plain inverse is what retraining does. Where it
is not, some eigenvalues are negative, and the inverse takes them, and all others of their size, for curvatures of a
minimum, which they are not. `h / (h^2 + damping)` follows `1 / h` where `|h|` is well above `sqrt(damping)` and cuts
off below it, so the size of the most negative eigenvalue is where to cut:

    damping = max(|min(0, smallest)|, rounding * largest)^2,    rounding = sqrt(machine epsilon)

The ends of the spectrum come from a Lanczos run from a random vector, so that the damping is the stage's own: it
depends on no query. The run ends once its ends have settled:

    residual of the end's Ritz pair <= 5 % of what the end decides, at both ends, and
    the smallest moved by at most 1 % of that over the last 5 steps,

where the smallest decides the cut (its own size, or rounding where that is larger) and the largest its own size. Steps
are bounded from both sides, and an operator that the run can exhaust within them is exhausted: its ends are then exact.
A solve for another right-hand side starts anew: what has settled to 5 % is no exact part of its Krylov space.

Where the operator has a positive semi-definite stand-in (Gauss-Newton for the Hessian), a negative
end of the spectrum means that the stand-in is inverted instead, plus the size of that end:
`(G + |smallest| I) x = b`. Both rules are measured against retraining in `docs/how-to-choose.md`.
"""

from collections.abc import Sequence
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

PROBE_STEPS = 60
"""Products that the ends of the spectrum take, at most."""

FEWEST_STEPS = 12
"""Products before which no end counts as settled."""

RESIDUAL, STILL, WINDOW = 0.05, 0.01, 5
"""When an end has settled: see above."""


@final
@dataclass(frozen=True)
class Chosen:
    """A damping of `H^2`, and the spectrum it was chosen from."""

    damping: float
    spectrum: Spectrum
    products: int

    @property
    def cut(self) -> float:
        """The curvature below which nothing is inverted: the damping's square root."""
        return self.damping**0.5

    @property
    def indefinite(self) -> bool:
        """Whether negative curvature chose the damping, rather than rounding."""
        return -self.spectrum.smallest >= self.cut * (1 - 1e-6)

    @property
    def note(self) -> str:
        """How it came about, in words."""
        return f"damping='auto' chose {self.damping:.3g} ({self._ends})"

    @property
    def note_of_stand_in(self) -> str:
        """The same where Gauss-Newton was inverted in the Hessian's place."""
        return f"the Hessian is indefinite ({self._ends}): Gauss-Newton G + {self.cut:.3g} was inverted in its place"

    @property
    def _ends(self) -> str:
        spectrum = self.spectrum
        return f"eigenvalues from {spectrum.smallest:.2e} to {spectrum.largest:.2e}, {self.products} products"


def choose_damping(operator: LinearOperator, steps: int = PROBE_STEPS, report: Report = silent) -> Chosen:
    """The damping for `(H^2 + damping I) x = H b`.

    Example:
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> indefinite = DiagonalOperator(torch.tensor([3.0, 1.0, -0.1], dtype=torch.float64))
        >>> round(choose_damping(indefinite).damping, 6)
        0.01
    """
    spectrum, products = ends_of_spectrum(operator, steps, report)
    return Chosen(cut_of(spectrum.smallest, spectrum.largest, operator.dtype) ** 2, spectrum, products)


def cut_of(smallest: float, largest: float, dtype: torch.dtype) -> float:
    """The curvature below which nothing is inverted: the most negative one's size, and rounding at least."""
    rounding = torch.finfo(dtype).eps ** 0.5 * max(abs(smallest), abs(largest))
    return max(-min(0.0, smallest), rounding)


def ends_of_spectrum(
    operator: LinearOperator, steps: int = PROBE_STEPS, report: Report = silent
) -> tuple[Spectrum, int]:
    """Ritz values of a Lanczos run from a random vector, the same on every machine, and its products."""
    start = torch.randn(operator.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    finished = lockstep(operator, [_run(start.to(operator.device, operator.dtype), steps)], report)
    return Spectrum(finished.outcomes[0].ritz), finished.products


@final
@dataclass(frozen=True)
class _Probed:
    """The Ritz values that a run ended with; it solves nothing, so that there is no residual."""

    ritz: tuple[float, ...]
    residual: float = nan


Ends = tuple[tuple[float, float], tuple[float, float]]


def _run(start: Tensor, steps: int) -> Process[_Probed]:
    filters = [Shift(0.0)]
    vectors = vectors_of(start, filters, Memory.plan(start.unsqueeze(1), 1, steps, 2 * 2**30), steps)
    run = Recurrence(start, norm(start), vectors)
    seen: list[Ends] = []
    while len(seen) < steps and not run.exhausted:
        run.advance((yield Ask(run.q, nan)))
        seen.append(run.T.ends())
        if start.numel() > steps and settled(seen, start.dtype):
            break
    return _Probed(run.T.ritz())


def settled(seen: Sequence[Ends], dtype: torch.dtype) -> bool:
    """Whether both ends will hardly move any more; `seen` are the ends and their residuals after each step."""
    if len(seen) < FEWEST_STEPS:
        return False
    (smallest, below), (largest, above) = seen[-1]
    decides = max(abs(smallest), cut_of(smallest, largest, dtype))
    moved = seen[-1 - WINDOW][0][0] - smallest
    return below <= RESIDUAL * decides and above <= RESIDUAL * abs(largest) and moved <= STILL * decides
