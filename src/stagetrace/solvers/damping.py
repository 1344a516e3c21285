"""How a system is damped: by a number, or from the operator's own spectrum (`damping="auto"`).

At a strict minimum the curvature is positive definite and the plain inverse predicts retraining. Elsewhere some
eigenvalues are negative, and the inverse treats them, and all others of their size, as curvatures of a minimum, which
they are not. So the cutoff is the size of the most negative eigenvalue, and at least rounding:

    cut = max(|min(0, smallest)|, rounding * largest),    rounding = sqrt(machine epsilon)

Where the operator is indefinite and has a positive semi-definite approximation G (Gauss-Newton for the Hessian), that
is inverted in its place: `(G + cut I) x = b`. Otherwise the filter turns the cutoff into a damping:

    Tikhonov    (H^2 + cut^2 I) x = H b                     follows 1 / h where |h| is well above the cut
    Shift       (H + (cut - min(0, smallest)) I) x = b      whose smallest eigenvalue is the cut

The extreme eigenvalues come from a Lanczos run from a random vector, so that the damping belongs to the stage and
depends on no query. The run ends once both extreme Ritz values have settled:

    the residual of its Ritz pair <= 10 % of its scale, for both, and
    the smallest changed by at most 5 % of its scale over the last 5 steps,

where the scale of the smallest is the cutoff (or its own size where that is larger), and that of the largest is its own
size. So a cutoff is known to about 10 %, from below, and no closer: it says where curvature stops being trusted, which
nothing knows better, and a solution depends on it at most in proportion. The number of steps has a lower and an upper
bound; an operator that the run can exhaust within them is exhausted, and its extreme eigenvalues are then exact. A
solve for a right-hand side starts its own run: a Ritz pair settled to 10 % is no exact part of another Krylov space.

The rules for G and for Tikhonov are measured against retraining in `docs/how-to-choose.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, final

import torch

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import Damping
from stagetrace.solvers.filters import Filter, Shift, Tikhonov
from stagetrace.solvers.iteration import Report, silent
from stagetrace.solvers.spectrum import Extremes, extreme_ritz_values
from stagetrace.solvers.system import Spectrum, System

SPECTRUM_STEPS = 60
"""Products that the extreme eigenvalues take, at most."""

MIN_STEPS = 12
"""Products before which no extreme eigenvalue counts as settled."""

RESIDUAL, DRIFT, WINDOW = 0.1, 0.05, 5
"""When an extreme eigenvalue has settled: see above."""


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

    def with_spectrum(self, operator: LinearOperator, spectrum: Spectrum) -> System:
        del spectrum
        return self(operator)

    def scaled(self, factor: float) -> "Fixed":
        return replace(self, damping=factor * self.damping)


@final
@dataclass(frozen=True)
class FromSpectrum:
    """A damping from the operator's extreme eigenvalues; it alone decides between Hessian and Gauss-Newton.

    filter: which system is damped, where the operator itself is inverted.
    factor: multiplies the damping.
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
        spectrum, products = extreme_ritz_values(
            operator, SPECTRUM_STEPS, report, partial(settled, dtype=operator.dtype)
        )
        return self._system(operator, spectrum, products)

    def with_spectrum(self, operator: LinearOperator, spectrum: Spectrum) -> System:
        return self._system(operator, spectrum, 0)

    def scaled(self, factor: float) -> "FromSpectrum":
        return replace(self, factor=factor * self.factor)

    def _system(self, operator: LinearOperator, spectrum: Spectrum, products: int) -> System:
        cut = cutoff(spectrum.smallest, spectrum.largest, operator.dtype)
        extremes = f"eigenvalues from {spectrum.smallest:.2e} to {spectrum.largest:.2e}, {products} products"
        # negative curvature sets the cutoff, rather than rounding
        indefinite = -spectrum.smallest >= cut * (1 - 1e-6)
        substitute = operator.psd_approximation if indefinite and self.substitute else None
        if substitute is not None:
            filter = Shift(self.factor * cut)
            note = f"the Hessian is indefinite ({extremes}): Gauss-Newton + {filter.damping:.3g} I was inverted instead"
            return System(substitute, filter, "G", spectrum, products, (note,))
        filter = self.filter(self.factor * self.filter.for_cutoff(cut, spectrum.smallest).damping)
        note = f"damping='auto' chose {filter.damping:.3g} ({extremes})"
        return System(operator, filter, "H", spectrum, products, (note,))


def rule_of(damping: float | Literal["auto"] | Damping, filter: type[Filter], *, substitute: bool = True) -> Damping:
    """The damping rule of a solver's `damping=`."""
    if damping == "auto":
        return FromSpectrum(filter, substitute=substitute)
    return Fixed(float(damping), filter) if isinstance(damping, int | float) else damping


def cutoff(smallest: float, largest: float, dtype: torch.dtype) -> float:
    """The curvature below which nothing is inverted: the size of the most negative eigenvalue, at least rounding."""
    rounding = torch.finfo(dtype).eps ** 0.5 * max(abs(smallest), abs(largest))
    return max(-min(0.0, smallest), rounding)


def settled(seen: Sequence[Extremes], dtype: torch.dtype) -> bool:
    """Whether both extreme Ritz values have settled; `seen` are these and their residuals after each step."""
    if len(seen) < MIN_STEPS:
        return False
    (smallest, below), (largest, above) = seen[-1]
    scale = max(abs(smallest), cutoff(smallest, largest, dtype))
    change = seen[-1 - WINDOW][0][0] - smallest
    return below <= RESIDUAL * scale and above <= RESIDUAL * abs(largest) and change <= DRIFT * scale
