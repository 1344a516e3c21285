"""The exact solution in a basis of eigenvectors, for operators that know theirs or are small enough to be dense."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor

from stagetrace.curvature.eigen import Eigen, at_once
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import SolveError
from stagetrace.solvers.base import ColumnSolutions, Damping, Prepared, Status, refuse_preconditioner
from stagetrace.solvers.closed_form import FromEigenvalues, spectrum_of
from stagetrace.solvers.damping import rule_of
from stagetrace.solvers.filters import Filter, Measured, Shift, Tikhonov, invertible
from stagetrace.solvers.iteration import Report
from stagetrace.solvers.mixtures import SURE, mixtures
from stagetrace.solvers.settings import check_count, check_rule, short_repr
from stagetrace.solvers.system import System
from stagetrace.solvers.vectors import lengths, spanned

FEW = 8
"""Columns up to which residuals are measured by a product for each."""


@final
@dataclass(frozen=True)
class Direct:
    """`f(H) b` in the operator's eigenbasis, in float64; damping 0 is the plain inverse.

    damping: a number of at least 0, or "auto", as for `Lanczos`: the extreme eigenvalues decide before the dense
        matrix is built; those of EK-FAC, which are known, without a product.

    Identity, diagonal, dense and EK-FAC operators know their eigenvectors (`LinearOperator.eigen`). Any other costs
    `prepare` `dim` products and O(dim^3) operations; the first `solve` counts these products, later ones cost none.
    Directions in which the system cannot be inverted (eigenvalues at rounding level, without damping) are left out of
    the answer; the status is then `Status.SINGULAR`, and a note says how many they are. Its tolerance is the square
    root of the dtype's rounding.

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
        return short_repr(self)

    @property
    def rule(self) -> Damping:
        return FromEigenvalues(self.filter) if self.damping == "auto" else rule_of(self.damping, self.filter)

    def prepare(self, system: System, preconditioner: LinearOperator | None = None) -> Prepared:
        refuse_preconditioner("Direct", preconditioner)
        operator = system.operator
        eigen = operator.eigen()
        if eigen is not None:
            return Prepared(system, partial(_solve, system, eigen))
        if operator.size > self.max_size:
            # The matrix as multiplied, its float64 copy, the eigenvectors, and the decomposition's own work space.
            needed = operator.size**2 * (4 * 8)
            raise SolveError(
                f"Direct would build a {operator.size:,} x {operator.size:,} matrix, about {needed / 1e9:,.1f} GB "
                f"of work space; the limit is {self.max_size:,} parameters. Use Lanczos(damping=...), which needs only "
                f"products, or allow it: Direct(max_size={operator.size})"
            )
        eigen = Eigen.of(operator.to_dense(), type(operator).__name__, operator.rounding)
        return Prepared(system, partial(_solve, system, eigen), setup=operator.size)


def _solve(system: System, eigen: Eigen, columns: Tensor, report: Report) -> ColumnSolutions:
    """`V f(values) V' b`, and its residual by true products."""
    usable = _usable(system, eigen)
    tolerance = max(torch.finfo(columns.dtype).eps, system.operator.rounding) ** 0.5
    gains = torch.where(usable, system.linear(eigen.values), 0.0)
    found = _in_coordinates(system, eigen, gains, columns, tolerance) if columns.shape[1] > FEW else None
    if found is None:
        value = eigen.scaled(gains, columns)
        found = value, system.linear.measure(system.operator, columns, value)
    value, measured = found
    report(1, max(measured.residuals, default=0.0))
    return ColumnSolutions(
        value=value,
        residuals=measured.residuals,
        statuses=tuple(_status(residual, tolerance, bool(usable.all())) for residual in measured.residuals),
        products=0,
        checks=measured.checks,
        steps=1,
        tolerance=tolerance,
        spectrum=spectrum_of(eigen),
        notes=_notes(usable),
    )


def _in_coordinates(
    system: System, eigen: Eigen, gains: Tensor, columns: Tensor, tolerance: float
) -> tuple[Tensor, Measured] | None:
    """The value and its residuals, `|V'b - (values + damping) V'x|`: a turn of each column less than by products.

    Products see all columns at once in random combinations. None where they do not agree, the basis is a matrix, or the
    system is another than `(H + damping I) x = b`.
    """
    if not isinstance(system.linear, Shift) or eigen.basis is None:
        return None
    damping, sizes = system.linear.damping, lengths(columns)
    mix, found, left, mixed = mixtures(sizes, columns).double(), list[Tensor](), list[Tensor](), 0.0
    step = at_once(columns.shape[0])
    for part, weights in zip(columns.split(step, dim=1), mix.split(step), strict=True):
        coordinates = eigen.into(part)
        found.append(eigen.out(gains.unsqueeze(1) * coordinates).to(columns.dtype))
        coordinates = coordinates - (eigen.values + damping).unsqueeze(1) * eigen.into(found[-1])
        left.append(lengths(coordinates))
        mixed = mixed + spanned(coordinates.mT, weights)
    value = torch.cat(found, dim=1) if found[1:] else found[0]
    b, x = (spanned(each.mT, mix.to(each)) for each in (columns, value))
    apart = b - system.operator @ x - damping * x - eigen.out(torch.as_tensor(mixed)).to(b)
    if not float(lengths(apart).max()) <= SURE * tolerance:
        return None
    residuals = torch.where(sizes > 0, torch.cat(left) / sizes, 0.0)
    return value, Measured(tuple(residuals.tolist()), mix.shape[1])


def _usable(system: System, eigen: Eigen) -> Tensor:
    """Which eigenvalues the system can invert: those above rounding level."""
    operator, exact = system.operator, torch.finfo(system.operator.dtype).eps
    level = exact if eigen.known else operator.size * exact
    if operator.rounding > exact:  # eigenvalues are off by the norm of what is rounded: about this much
        level = max(level, operator.size**0.5 * eigen.asymmetry)
    return invertible(system.linear, eigen.values, level)


def _status(residual: float, tolerance: float, regular: bool) -> Status:
    if not regular:
        return Status.SINGULAR
    return Status.CONVERGED if residual <= tolerance else Status.STAGNATED


def _notes(usable: Tensor) -> tuple[str, ...]:
    dropped = int((~usable).sum())
    if not dropped:
        return ()
    return (
        f"{dropped} of {usable.numel()} eigenvalues of the system are at rounding level: the answer leaves their "
        f"directions out (a least-squares answer, not an inverse); add damping for a well-posed system",
    )
