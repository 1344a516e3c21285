"""Which function of the curvature is applied to a vector, whichever algorithm applies it.

Both filters are the real part of one shifted inverse, `f(h) = Re 1 / (h + s)`:

    Shift       s = lambda             f(h) = 1 / (h + lambda)
    Tikhonov    s = i sqrt(lambda)     f(h) = h / (h^2 + lambda)

since `1 / (h + i sqrt(lambda)) = (h - i sqrt(lambda)) / (h^2 + lambda)`. An algorithm that solves
`(H + s I) z = b` and returns `Re z` therefore serves both. With `lambda = 0` both are the plain inverse.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.batched import run_batched
from stagetrace.solvers.iteration import Matvec, silent
from stagetrace.solvers.numerics import relative
from stagetrace.solvers.settings import check_damping
from stagetrace.solvers.vectors import nonzero, norms_of_sum


@final
@dataclass(frozen=True)
class Measured:
    """True relative residuals, one per column, and the products with the operator that measured them."""

    residuals: tuple[float, ...]
    checks: int = 0

    @property
    def residual(self) -> float:
        return max(self.residuals, default=0.0)


Measurement = Generator[Matvec, Tensor, Measured]
"""A measurement as an iteration for `run_batched`."""


@dataclass(frozen=True)
class Filter(ABC):
    """A spectral filter `f(h) = Re 1 / (h + s)`, as the linear system whose solution is `f(H) b`."""

    damping: float = 0.0

    def __post_init__(self) -> None:
        check_damping(type(self).__name__, self.damping)

    @property
    @abstractmethod
    def shift(self) -> complex:
        """The `s` of `f(h) = Re 1 / (h + s)`: real or purely imaginary."""

    @classmethod
    @abstractmethod
    def for_cutoff(cls, cut: float, smallest: float) -> "Filter":
        """The filter that inverts no curvature below `cut`; smallest: the smallest eigenvalue."""

    @abstractmethod
    def text(self, matrix: str) -> str:
        """The linear system as text, for a curvature called `matrix`."""

    @abstractmethod
    def measurement(self, rhs: Tensor, value: Tensor, targets: Sequence[float] | None) -> Measurement:
        """The measurement as an iteration for `run_batched`, which asks for blocks of vectors."""

    @final
    def measure(
        self, operator: LinearOperator, rhs: Tensor, value: Tensor, targets: Sequence[float] | None = None
    ) -> Measured:
        """The relative residuals of `value` `[dim, k]` for the columns of `rhs` `[dim, k]`, by true products.

        A zero column of `rhs` costs no product and has residual 0. `targets` are the norms of the system's own
        right-hand side, where the caller knows them from a product already made. Norms are taken in float64.
        """
        run = run_batched(operator, [self.measurement(rhs, value, targets)], silent, finite=False)
        return Measured(run.outcomes[0].residuals, run.checks)

    @final
    def __call__(self, eigenvalues: Tensor) -> Tensor:
        """`f(h)` for each real eigenvalue; infinite where `h + s` is zero."""
        h = eigenvalues.double()
        real, imaginary = h + self.shift.real, self.shift.imag
        return real / (real**2 + imaginary**2) if imaginary else 1 / real


@final
@dataclass(frozen=True)
class Shift(Filter):
    """`1 / (h + lambda)`: the solution of `(H + lambda I) x = b`.

    The residual is `|b - (H + lambda I) x| / |b|`, one product per column.

    Example:
        >>> Shift(0.5).text("H")
        '(H + 0.5 I) x = b'
        >>> Shift(1.0)(torch.tensor([1.0, 3.0], dtype=torch.float64))
        tensor([0.5000, 0.2500], dtype=torch.float64)
    """

    @property
    def shift(self) -> complex:
        return complex(self.damping)

    @classmethod
    def for_cutoff(cls, cut: float, smallest: float) -> "Shift":
        """The shift that makes the smallest eigenvalue of `H + lambda I` equal to `cut`."""
        return cls(cut - min(0.0, smallest))

    def text(self, matrix: str) -> str:
        return f"({matrix} + {self.damping:g} I) x = b" if self.damping else f"{matrix} x = b"

    def measurement(self, rhs: Tensor, value: Tensor, targets: Sequence[float] | None) -> Measurement:
        del targets
        live, residuals = _nonzero(rhs), [0.0] * rhs.shape[1]
        if live:
            b, x = _columns(rhs, live), _columns(value, live)
            images = yield Matvec(x, nan, check=True)
            sizes = norms_of_sum((1.0, b), (-1.0, images), (-self.damping, x))
            for j, size, known in zip(live, sizes, norms_of_sum((1.0, b)), strict=True):
                residuals[j] = relative(size, known)
        return Measured(tuple(residuals))


@final
@dataclass(frozen=True)
class Tikhonov(Filter):
    """`h / (h^2 + lambda)`: the solution of `(H^2 + lambda I) x = H b`, well posed for indefinite `H` too.

    The residual is `|H (b - H x) - lambda x| / |H b|`: two products per column, a third for `H b` where its norm
    is not yet known. Without damping the system is `H x = b`, with one product.

    Source: the paper's eq. (16), damped.

    Example:
        >>> Tikhonov(0.01).text("H")
        '(H^2 + 0.01 I) x = H b'
        >>> Tikhonov(1.0)(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
        tensor([-0.5000,  0.0000,  0.5000], dtype=torch.float64)
    """

    @property
    def shift(self) -> complex:
        return complex(0.0, self.damping**0.5)

    @classmethod
    def for_cutoff(cls, cut: float, smallest: float) -> "Tikhonov":
        """`h / (h^2 + cut^2)` follows `1 / h` where `|h|` is well above `cut`, and goes to zero below it."""
        del smallest
        return cls(cut**2)

    def text(self, matrix: str) -> str:
        return f"({matrix}^2 + {self.damping:g} I) x = {matrix} b" if self.damping else f"{matrix} x = b"

    def measurement(self, rhs: Tensor, value: Tensor, targets: Sequence[float] | None) -> Measurement:
        live, residuals = _nonzero(rhs), [0.0] * rhs.shape[1]
        if self.damping == 0 or not live:
            return (yield from Shift().measurement(rhs, value, None))
        b, x = _columns(rhs, live), _columns(value, live)
        product = yield Matvec(x, nan, check=True)
        images = yield Matvec(b - product, nan, check=True)
        if targets is None:
            known = norms_of_sum((1.0, (yield Matvec(b, nan, check=True))))
        else:
            known = [targets[j] for j in live]
        sizes = norms_of_sum((1.0, images), (-self.damping, x))
        for i, j in enumerate(live):
            residuals[j] = relative(sizes[i], known[i])
        return Measured(tuple(residuals))


@final
@dataclass(frozen=True)
class Squared(Filter):
    """`Tikhonov` by way of its normal equations, which stay squared without damping too: `H^2 x = H b`.

    Example:
        >>> Squared().text("H")
        'H^2 x = H b'
    """

    @property
    def shift(self) -> complex:
        return Tikhonov(self.damping).shift

    @classmethod
    def for_cutoff(cls, cut: float, smallest: float) -> "Squared":
        return cls(Tikhonov.for_cutoff(cut, smallest).damping)

    def text(self, matrix: str) -> str:
        return Tikhonov(self.damping).text(matrix) if self.damping else f"{matrix}^2 x = {matrix} b"

    def measurement(self, rhs: Tensor, value: Tensor, targets: Sequence[float] | None) -> Measurement:
        return (yield from Tikhonov(self.damping).measurement(rhs, value, targets))


FILTERS: Mapping[str, type[Filter]] = {kind.__name__: kind for kind in (Shift, Tikhonov, Squared)}
"""The filters by their names."""


def _columns(matrix: Tensor, chosen: list[int]) -> Tensor:
    return matrix if len(chosen) == matrix.shape[1] else matrix[:, chosen]


def _nonzero(rhs: Tensor) -> list[int]:
    return [j for j, live in enumerate(nonzero(rhs)) if live]


def invertible(filter: Filter, eigenvalues: Tensor, level: float) -> Tensor:
    """Which eigenvalues `h` the filter can invert: those with `|h + s|` above `level` times the largest `|h|`."""
    distance = torch.hypot(eigenvalues + filter.shift.real, torch.full_like(eigenvalues, filter.shift.imag))
    return distance > level * eigenvalues.abs().max()
