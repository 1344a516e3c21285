"""Operators whose eigenvalues are known: their spectrum without a product, and the damping that follows from it."""

from dataclasses import dataclass, replace
from typing import final

from stagetrace.curvature.eigen import Eigen
from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.damping import FromSpectrum
from stagetrace.solvers.filters import Filter, Tikhonov
from stagetrace.solvers.iteration import Report, silent
from stagetrace.solvers.system import Spectrum, System

__all__ = ["MOST", "FromEigenvalues", "spectrum_of"]

MOST = 4096
"""Eigenvalues that a spectrum lists at most; of more, evenly chosen ones with both ends."""


@final
@dataclass(frozen=True)
class FromEigenvalues:
    """The rule of `FromSpectrum`; of EK-FAC on its eigenvalues, which are known.

    Example:
        >>> import torch
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> from stagetrace.solvers.filters import Shift
        >>> system = FromEigenvalues(Shift)(DiagonalOperator(torch.tensor([3.0, -0.1], dtype=torch.float64)))
        >>> str(system)
        '(H + 0.2 I) x = b'
    """

    filter: type[Filter] = Tikhonov
    factor: float = 1.0

    def __call__(self, operator: LinearOperator, report: Report = silent) -> System:
        eigen = operator.eigen() if operator.approximates is not None else None
        if eigen is None:
            return self._rule(operator, report)
        return self._rule.with_spectrum(operator, spectrum_of(eigen))

    def with_spectrum(self, operator: LinearOperator, spectrum: Spectrum) -> System:
        return self._rule.with_spectrum(operator, spectrum)

    def scaled(self, factor: float) -> "FromEigenvalues":
        return replace(self, factor=factor * self.factor)

    @property
    def _rule(self) -> FromSpectrum:
        return FromSpectrum(self.filter, self.factor)


def spectrum_of(eigen: Eigen) -> Spectrum:
    """The eigenvalues, ascending; of many evenly chosen ones.

    Example:
        >>> import torch
        >>> spectrum_of(Eigen(torch.tensor([2.0, -1.0], dtype=torch.float64))).ritz
        (-1.0, 2.0)
    """
    values = eigen.values.sort().values
    if len(values) <= MOST or not eigen.known:
        return Spectrum(tuple(values.tolist()))
    chosen = [round(place * (len(values) - 1) / (MOST - 1)) for place in range(MOST)]
    return Spectrum(tuple(values[chosen].tolist()))
