"""A damping from the operator itself: what `damping="auto"` means.

Where a stage is at a strict minimum its curvature is positive and the plain inverse is what retraining does. Where it
is not, some eigenvalues are negative, and the inverse takes them, and all others of their size, for curvatures of a
minimum, which they are not. `h / (h^2 + damping)` follows `1 / h` where `|h|` is well above `sqrt(damping)` and cuts
off below it, so the size of the most negative eigenvalue is where to cut:

    damping = max(|min(0, smallest)|, rounding * largest)^2,    rounding = sqrt(machine epsilon)

The ends of the spectrum come from a short Lanczos run from a random vector, so that the damping is the stage's own: it
depends on no query. Where the operator has a positive semi-definite stand-in (Gauss-Newton for the Hessian), a negative
end of the spectrum means that the stand-in is inverted instead, plus the size of that end:
`(G + |smallest| I) x = b`. Both rules are measured against retraining in `docs/how-to-choose.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import Spectrum, silent
from stagetrace.solvers.filters import Shift
from stagetrace.solvers.krylov import Memory, run_lanczos
from stagetrace.solvers.lockstep import lockstep

PROBE_STEPS = 60
"""Products that the ends of the spectrum take."""


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


def choose_damping(operator: LinearOperator, steps: int = PROBE_STEPS) -> Chosen:
    """The damping for `(H^2 + damping I) x = H b`.

    Example:
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> indefinite = DiagonalOperator(torch.tensor([3.0, 1.0, -0.1], dtype=torch.float64))
        >>> round(choose_damping(indefinite).damping, 6)
        0.01
    """
    spectrum, products = ends_of_spectrum(operator, steps)
    rounding = torch.finfo(operator.dtype).eps ** 0.5 * max(abs(spectrum.smallest), abs(spectrum.largest))
    return Chosen(max(-min(0.0, spectrum.smallest), rounding) ** 2, spectrum, products)


def ends_of_spectrum(operator: LinearOperator, steps: int = PROBE_STEPS) -> tuple[Spectrum, int]:
    """Ritz values of a Lanczos run from a random vector, the same on every machine, and its products."""
    start = torch.randn(operator.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vector = start.to(operator.device, operator.dtype)
    filters: Sequence[Shift] = [Shift(0.0)]
    memory = Memory.plan(vector.unsqueeze(1), 1, steps, 2 * 2**30)
    finished = lockstep(operator, [run_lanczos(vector, filters, memory, 1e-14, steps)], silent)
    return Spectrum(finished.outcomes[0].ritz), finished.products
