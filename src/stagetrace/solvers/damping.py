"""How a system is damped: by a number, or from the operator's own spectrum (`damping="auto"`).

Where a stage is at a strict minimum its curvature is positive and the plain inverse is what retraining does. Where it
is not, some eigenvalues are negative, and the inverse takes them, and all others of their size, for curvatures of a
minimum, which they are not. So the size of the most negative eigenvalue is where to cut, and rounding at least:

    cut = max(|min(0, smallest)|, rounding * largest),    rounding = sqrt(machine epsilon)

Where the operator has a positive semi-definite approximation (Gauss-Newton for the Hessian) and the spectrum has a
negative end, that is inverted in its place, plus the size of that end: `(G + cut I) x = b`. Everywhere else the filter
decides what a cut is:

    Tikhonov    (H^2 + cut^2 I) x = H b                     follows 1 / h where |h| is well above the cut
    Shift       (H + (cut - min(0, smallest)) I) x = b      whose smallest eigenvalue is the cut

The ends of the spectrum come from a Lanczos run from a random vector, so that the damping is the stage's own: it
depends on no query. The run ends once its ends have settled:

    residual of the end's Ritz pair <= 5 % of what the end decides, at both ends, and
    the smallest moved by at most 1 % of that over the last 5 steps,

where the smallest decides the cut (its own size, or rounding where that is larger) and the largest its own size. Steps
are bounded from both sides, and an operator that the run can exhaust within them is exhausted: its ends are then exact.
A solve for another right-hand side starts anew: what has settled to 5 % is no exact part of its Krylov space.

The rules for G and for Tikhonov are measured against retraining in `docs/how-to-choose.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, final

import torch

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import Damping, Report, Spectrum, silent
from stagetrace.solvers.filters import Filter, Shift, Tikhonov
from stagetrace.solvers.spectrum import Ends, extreme_ritz_values
from stagetrace.solvers.system import System

LOOK_STEPS = 60
"""Products that the ends of the spectrum take, at most."""

FEWEST_STEPS = 12
"""Products before which no end counts as settled."""

RESIDUAL, STILL, WINDOW = 0.05, 0.01, 5
"""When an end has settled: see above."""


@final
@dataclass(frozen=True)
class Fixed:
    """A damping that was given.

    Example:
        >>> from stagetrace.curvature.operator import IdentityOperator
        >>> str(Fixed(0.5, Shift)(IdentityOperator(2, torch.float64)))
        '(H + 0.5 I) x = b'
    """

    damping: float = 0.0
    filter: type[Filter] = Tikhonov

    def __call__(self, operator: LinearOperator, report: Report = silent) -> System:
        del report
        return System(operator, self.filter(self.damping))

    def given(self, operator: LinearOperator, spectrum: Spectrum) -> System:
        del spectrum
        return self(operator)

    def times(self, factor: float) -> "Fixed":
        return replace(self, damping=factor * self.damping)


@final
@dataclass(frozen=True)
class FromSpectrum:
    """A damping from the ends of the operator's spectrum; the one place that decides between Hessian and Gauss-Newton.

    filter: what is made of a cut where the operator itself is inverted.
    factor: what the damping is multiplied by.
    substitute: whether a positive semi-definite approximation may be inverted in the operator's place.

    Example:
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> indefinite = DiagonalOperator(torch.tensor([3.0, 1.0, -0.1], dtype=torch.float64))
        >>> str(FromSpectrum()(indefinite)), str(FromSpectrum(Shift)(indefinite))
        ('(H^2 + 0.01 I) x = H b', '(H + 0.2 I) x = b')
    """

    filter: type[Filter] = Tikhonov
    factor: float = 1.0
    substitute: bool = True

    def __call__(self, operator: LinearOperator, report: Report = silent) -> System:
        spectrum, products = extreme_ritz_values(operator, LOOK_STEPS, report, partial(settled, dtype=operator.dtype))
        return self._made(operator, spectrum, products)

    def given(self, operator: LinearOperator, spectrum: Spectrum) -> System:
        return self._made(operator, spectrum, 0)

    def times(self, factor: float) -> "FromSpectrum":
        return replace(self, factor=factor * self.factor)

    def _made(self, operator: LinearOperator, spectrum: Spectrum, products: int) -> System:
        cut = cut_of(spectrum.smallest, spectrum.largest, operator.dtype)
        ends = f"eigenvalues from {spectrum.smallest:.2e} to {spectrum.largest:.2e}, {products} products"
        # negative curvature decides the cut, rather than rounding
        indefinite = -spectrum.smallest >= cut * (1 - 1e-6)
        stand_in = operator.psd_approximation if indefinite and self.substitute else None
        if stand_in is not None:
            filter = Shift(self.factor * cut)
            note = (
                f"the Hessian is indefinite ({ends}): Gauss-Newton G + {filter.damping:.3g} was inverted in its place"
            )
            return System(stand_in, filter, "G", spectrum, products, (note,))
        filter = self.filter(self.factor * self.filter.cutting(cut, spectrum.smallest).damping)
        note = f"damping='auto' chose {filter.damping:.3g} ({ends})"
        return System(operator, filter, "H", spectrum, products, (note,))


def rule_of(damping: float | Literal["auto"] | Damping, filter: type[Filter], *, substitute: bool = True) -> Damping:
    """The damping rule that a solver's setting stands for."""
    if damping == "auto":
        return FromSpectrum(filter, substitute=substitute)
    return Fixed(float(damping), filter) if isinstance(damping, int | float) else damping


def cut_of(smallest: float, largest: float, dtype: torch.dtype) -> float:
    """The curvature below which nothing is inverted: the most negative one's size, and rounding at least."""
    rounding = torch.finfo(dtype).eps ** 0.5 * max(abs(smallest), abs(largest))
    return max(-min(0.0, smallest), rounding)


def settled(seen: Sequence[Ends], dtype: torch.dtype) -> bool:
    """Whether both ends will hardly move any more; `seen` are the ends and their residuals after each step."""
    if len(seen) < FEWEST_STEPS:
        return False
    (smallest, below), (largest, above) = seen[-1]
    decides = max(abs(smallest), cut_of(smallest, largest, dtype))
    moved = seen[-1 - WINDOW][0][0] - smallest
    return below <= RESIDUAL * decides and above <= RESIDUAL * abs(largest) and moved <= STILL * decides
