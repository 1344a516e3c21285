"""The paper's system: any solver for positive definite operators, applied to `(H^2 + lambda I) x = H b`."""

from dataclasses import dataclass, replace
from typing import Protocol, final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import refuse
from stagetrace.solvers.base import Inverse, Report, Solution, silent
from stagetrace.solvers.numerics import as_columns, require_finite
from stagetrace.solvers.settings import check_damping


class Inner(Protocol):
    """A solver that says how much damping it adds itself."""

    @property
    def damping(self) -> float: ...

    def prepare(self, operator: LinearOperator) -> Inverse: ...


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

    Raises:
        DescriptionError: `damping` out of range, or an inner solver with a damping of its own.

    Source: the paper's eq. (16), damped.

    Example:
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> from stagetrace.solvers.cg import CG
        >>> H = DiagonalOperator(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> Normal(CG(), damping=1.0).prepare(H).solve(torch.tensor([2.0, 5.0], dtype=torch.float64)).value
        tensor([ 1., -2.], dtype=torch.float64)
    """

    inner: Inner
    damping: float

    def __post_init__(self) -> None:
        check_damping("Normal", self.damping)
        if self.inner.damping != 0:
            name = type(self.inner).__name__
            refuse(
                f"Normal adds the damping itself, to H^2: its inner solver must have none, got {self.inner}, which "
                f"would add a second one; type Normal({name}(damping=0.0), damping={self.damping:g}) instead"
            )

    def __str__(self) -> str:
        return f"Normal({self.inner}, damping={self.damping})"

    def prepare(self, operator: LinearOperator) -> "NormalInverse":
        return NormalInverse(self, operator, self.inner.prepare(SquaredOperator(operator, self.damping)))


@final
@dataclass(frozen=True)
class NormalInverse:
    """An operator about to be solved with through its square."""

    solver: Normal
    operator: LinearOperator
    squared: Inverse

    def solve(self, rhs: Tensor, report: Report = silent) -> Solution:
        columns = as_columns(self.operator, rhs)
        nonzero = (columns != 0).any(dim=0)
        images = torch.zeros_like(columns)
        if nonzero.any():
            images[:, nonzero] = self.operator @ columns[:, nonzero]
        require_finite(images, f"the product of {type(self.operator).__name__} with the right-hand side")
        inner = self.squared.solve(images.reshape(rhs.shape), report)
        # The inner solver's spectrum is that of H^2 + lambda I, from which the signs in H cannot be told.
        return replace(
            inner,
            system=f"(H^2 + {self.solver.damping:g} I) x = H b" if self.solver.damping else "H^2 x = H b",
            products=2 * inner.products + int(nonzero.sum()),
            checks=2 * inner.checks,
            spectrum=None,
        )
