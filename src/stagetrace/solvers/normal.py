"""The paper's system: any solver for positive definite operators, applied to `(H^2 + lambda I) x = H b`."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor

from stagetrace.curvature.eigen import require_finite
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import refuse
from stagetrace.solvers.base import ColumnSolutions, Damping, Inverse, Prepared, Solver
from stagetrace.solvers.damping import rule_of
from stagetrace.solvers.filters import Shift, Squared
from stagetrace.solvers.iteration import Report
from stagetrace.solvers.settings import check_rule
from stagetrace.solvers.system import System


@final
class SquaredOperator(LinearOperator):
    """`x -> (H^2 + lambda I) x`, by two products with `H`: positive definite whatever the signs in `H`.

    Example:
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> SquaredOperator(DiagonalOperator(torch.tensor([2.0, -3.0])), 1.0) @ torch.tensor([1.0, 1.0])
        tensor([ 5., 10.])
    """

    def __init__(self, operator: LinearOperator, damping: float) -> None:
        self.operator, self.damping = operator, damping
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def apply(self, vectors: Tensor) -> Tensor:
        return torch.add(self.operator @ (self.operator @ vectors), vectors, alpha=self.damping)


@final
@dataclass(frozen=True)
class Normal:
    """`(H^2 + damping I) x = H b`, solved by the inner solver: the paper's way is `Normal(CG(), damping=...)`.

    Defined for indefinite `H`, at the price of a squared condition number and of two products with `H` a step.
    `Lanczos` solves the same system with one. `Solution.products` and `.checks` count products with `H`; there is
    one more product per column for `H b`.

    damping: a number of at least 0, or "auto": the square of the size of the most negative eigenvalue, at least of
        rounding (see `damping.py`); it is always H that is inverted.

    Raises:
        DescriptionError: `damping` out of range, or an inner solver with a damping of its own.

    Source: the paper's eq. (16), damped.

    Example:
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> from stagetrace.solvers import CG, solve
        >>> H = DiagonalOperator(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> solve(H, torch.tensor([2.0, 5.0], dtype=torch.float64), Normal(CG(), damping=1.0)).value
        tensor([ 1., -2.], dtype=torch.float64)
    """

    inner: Solver
    damping: float | Literal["auto"] | Damping

    def __post_init__(self) -> None:
        check_rule("Normal", self.damping)
        if self.inner.rule.scaled(2.0) != self.inner.rule:
            name = type(self.inner).__name__
            refuse(
                f"Normal adds the damping itself, to H^2: its inner solver must have none, got {self.inner}, which "
                f"would add a second one; type Normal({name}(damping=0.0), damping={self.damping!r}) instead"
            )

    def __str__(self) -> str:
        return f"Normal({self.inner}, damping={self.damping})"

    @property
    def rule(self) -> Damping:
        return rule_of(self.damping, Squared, substitute=False)

    def prepare(self, system: System, preconditioner: LinearOperator | None = None) -> Prepared:
        if system.linear.damping and not system.linear.shift.imag:
            refuse(f"Normal solves (H^2 + damping I) x = H b, got {system}; use its inner solver, {self.inner}")
        squared = System(SquaredOperator(system.operator, system.linear.damping), Shift())
        return Prepared(system, partial(_solve, system.operator, self.inner.prepare(squared, preconditioner)))


def _solve(operator: LinearOperator, squared: Inverse, columns: Tensor, report: Report) -> ColumnSolutions:
    nonzero = (columns != 0).any(dim=0)
    images = torch.zeros_like(columns)
    if nonzero.any():
        images[:, nonzero] = operator @ columns[:, nonzero]
    require_finite(images, f"the product of {type(operator).__name__} with the right-hand side")
    inner = squared.solve(images, report)
    return ColumnSolutions(
        value=inner.value,
        residuals=inner.relative_residuals,
        statuses=inner.statuses,
        products=2 * inner.products + int(nonzero.sum()),
        checks=2 * inner.checks,
        steps=inner.steps,
        tolerance=inner.tolerance,
        # the inner solver's spectrum is that of H^2 + lambda I, from which the signs in H cannot be told
        notes=inner.notes,
    )
