"""Dense eigendecomposition: exact, for operators small enough to be written down."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import SolveError
from stagetrace.solvers.base import Damping, Found, Prepared, Report, Spectrum, Status, refuse_preconditioner
from stagetrace.solvers.damping import rule_of
from stagetrace.solvers.filters import Filter, Tikhonov, gains_are_finite
from stagetrace.solvers.numerics import require_finite
from stagetrace.solvers.settings import check_count, check_rule, compact
from stagetrace.solvers.system import System


@final
@dataclass(frozen=True)
class Direct:
    """`f(H) b` by the eigendecomposition of the dense `H` in float64; damping 0 is the plain inverse.

    damping: a number of at least 0, or "auto", as for `Lanczos`: the ends of the spectrum decide before the matrix is
        written down.

    `prepare` pays `dim` products and O(dim^3) operations; the first `solve` afterwards carries these products
    in its count, later ones cost none. Directions along which the system cannot be divided (eigenvalues at rounding
    level, without damping) are left out of the answer, and then the status is `Status.SINGULAR` and a note says
    how many they are. The tolerance it holds itself to is the square root of the dtype's rounding.

    filter: `Tikhonov` for `(H^2 + damping I) x = H b`, `Shift` for `(H + damping I) x = b`.

    Raises:
        DescriptionError: a setting out of range.
        SolveError: (from `prepare`) more than `max_size` parameters, or a matrix that is not symmetric.

    Example:
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> from stagetrace.solvers import solve
        >>> H = DiagonalOperator(torch.tensor([2.0, -4.0], dtype=torch.float64))
        >>> solution = solve(H, torch.tensor([2.0, 2.0], dtype=torch.float64), Direct())
        >>> solution.value, solution.spectrum.ritz
        (tensor([ 1.0000, -0.5000], dtype=torch.float64), (-4.0, 2.0))
    """

    damping: float | Literal["auto"] | Damping = 0.0
    filter: type[Filter] = Tikhonov
    max_size: int = 8192

    def __post_init__(self) -> None:
        check_rule("Direct", self.damping)
        check_count("Direct", "max_size", self.max_size, 8192)

    def __str__(self) -> str:
        return compact(self)

    @property
    def rule(self) -> Damping:
        return rule_of(self.damping, self.filter)

    def prepare(self, system: System, preconditioner: LinearOperator | None = None) -> Prepared:
        refuse_preconditioner("Direct", preconditioner)
        operator = system.operator
        if operator.size > self.max_size:
            # The matrix as multiplied, its float64 copy, the eigenvectors, and the decomposition's own work space.
            needed = operator.size**2 * (4 * 8)
            raise SolveError(
                f"Direct would write down a {operator.size:,} x {operator.size:,} matrix, about {needed / 1e9:,.1f} GB "
                f"of work space; the limit is {self.max_size:,} parameters. Use Lanczos(damping=...), which needs only "
                f"products, or allow it: Direct(max_size={operator.size})"
            )
        matrix = operator.to_dense().double()
        require_finite(matrix, f"{type(operator).__name__} written as a matrix")
        asymmetry = _asymmetry(matrix, operator)
        eigenvalues, eigenvectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        return Prepared(system, _Basis(system, eigenvalues, eigenvectors, asymmetry).solve, setup=operator.size)


@final
class _Basis:
    """The eigenvalues `[dim]` and eigenvectors `[dim, dim]` of a system's operator.

    asymmetry: of the products that it was written down from, over the largest entry.
    """

    def __init__(self, system: System, eigenvalues: Tensor, eigenvectors: Tensor, asymmetry: float) -> None:
        self.operator, self.filter, self.asymmetry = system.operator, system.filter, asymmetry
        self.eigenvalues, self.eigenvectors = eigenvalues, eigenvectors

    def solve(self, columns: Tensor, report: Report) -> Found:
        filter = self.filter
        usable = self._usable(filter)
        tolerance = max(torch.finfo(columns.dtype).eps, self.operator.rounding) ** 0.5
        gains = torch.where(usable, filter(self.eigenvalues), 0.0)
        coordinates = self.eigenvectors.T @ columns.double()
        value = (self.eigenvectors @ (gains.unsqueeze(1) * coordinates)).to(columns.dtype)
        measured = filter.measure(self.operator, columns, value)
        report(1, max(measured.residuals, default=0.0))
        return Found(
            value=value,
            residuals=measured.residuals,
            statuses=tuple(self._status(residual, tolerance, bool(usable.all())) for residual in measured.residuals),
            products=0,
            checks=measured.checks,
            steps=1,
            tolerance=tolerance,
            spectrum=Spectrum(tuple(self.eigenvalues.tolist())),
            notes=self._notes(usable),
        )

    def _usable(self, filter: Filter) -> Tensor:
        exact = torch.finfo(self.operator.dtype).eps
        level = self.operator.size * exact
        if self.operator.rounding > exact:  # eigenvalues are off by the norm of what is rounded: about this much
            level = max(level, self.operator.size**0.5 * self.asymmetry)
        return gains_are_finite(filter, self.eigenvalues, level)

    @staticmethod
    def _status(residual: float, tolerance: float, regular: bool) -> Status:
        if not regular:
            return Status.SINGULAR
        return Status.CONVERGED if residual <= tolerance else Status.STAGNATED

    @staticmethod
    def _notes(usable: Tensor) -> tuple[str, ...]:
        dropped = int((~usable).sum())
        if not dropped:
            return ()
        return (
            f"{dropped} of {usable.numel()} eigenvalues of the system are at rounding level: the answer leaves their "
            f"directions out (a least-squares answer, not an inverse); add damping for a well-posed system",
        )


def _asymmetry(matrix: Tensor, operator: LinearOperator) -> float:
    """How far entries are from their mirror, over the largest entry.

    Raises:
        SolveError: farther than rounding goes.
    """
    # Sums over many examples are rounded too: half the digits that a product has is generous.
    asymmetry, scale = float((matrix - matrix.T).abs().max()), float(matrix.abs().max())
    if asymmetry > operator.rounding**0.5 * scale:
        raise SolveError(
            f"{type(operator).__name__} is not symmetric: entries differ from their mirror by up to {asymmetry:.1e} "
            f"(largest entry {scale:.1e}). A curvature must give the same product every time: put the model in eval "
            f"mode and fix the order of the data"
        )
    return asymmetry / scale if scale else 0.0
