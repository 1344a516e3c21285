"""What every solver promises: prepare an operator once, solve for many right-hand sides, say how well.

A solver sees a `LinearOperator` and vectors; it never sees a model, a data set or a process group. It is a
frozen record of hyper-parameters, checked at birth. Outcome is a value: every solve returns a `Solution`,
whose residual is measured by extra products with the operator and not taken from a recurrence.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, final

from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import SolveError


@final
class Status(StrEnum):
    """How a solve ended, from best to worst."""

    CONVERGED = "converged"
    MAX_STEPS = "stopped at the step limit"
    STAGNATED = "stagnated above the tolerance"
    INDEFINITE = "met negative curvature"
    SINGULAR = "singular operator"
    DIVERGED = "diverged"

    @staticmethod
    def worst(statuses: "tuple[Status, ...]") -> "Status":
        order = list(Status)
        return max(statuses, key=order.index, default=Status.CONVERGED)


@final
@dataclass(frozen=True)
class Spectrum:
    """What a solve learned of the operator's eigenvalues on the way (of the curvature alone, undamped).

    `ritz` are ascending estimates; `smallest` and `largest` are rigorous in one direction only: the true
    smallest eigenvalue is at most `smallest`, the true largest at least `largest`.
    """

    ritz: tuple[float, ...]

    @property
    def smallest(self) -> float:
        return self.ritz[0]

    @property
    def largest(self) -> float:
        return self.ritz[-1]


@final
@dataclass(frozen=True)
class Solution:
    """The answer of a linear solve, and how good it is.

    value: `[dim]` or `[dim, k]`, in the shape of the right-hand side.
    system: the equation solved, in words, e.g. `(H^2 + 0.01 I) x = H b`.
    relative_residuals: one per column, of that equation, `|rhs - A x| / |rhs|`, measured by true products.
    products: operator-vector products spent on solving, over all columns; `checks`: those spent on measuring.
    steps: iterations of the slowest column.
    statuses: one per column.
    spectrum: eigenvalue estimates, where the method yields them.
    tolerance: the relative residual that was asked for.
    """

    value: Tensor
    system: str
    relative_residuals: tuple[float, ...]
    products: int
    checks: int
    steps: int
    statuses: tuple[Status, ...]
    tolerance: float
    spectrum: Spectrum | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def relative_residual(self) -> float:
        """The worst column's true relative residual."""
        return max(self.relative_residuals, default=0.0)

    @property
    def status(self) -> Status:
        """The worst column's status."""
        return Status.worst(self.statuses)

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED

    def checked(self) -> Tensor:
        """The value, if every column converged.

        Raises:
            SolveError: a column did not; the message says how it ended and at which residual.
        """
        if not self.converged:
            raise SolveError(
                f"{self.system}: {self.status.value} at relative residual {self.relative_residual:.1e} "
                f"(asked for {self.tolerance:.1e}) after {self.products} products"
            )
        return self.value


class Report(Protocol):
    """Called after each iteration with the steps done and the worst relative residual estimate so far.

    The residual is NaN while there is no answer yet: a solver that chooses its damping looks at the spectrum first.
    """

    def __call__(self, step: int, residual: float, /) -> None: ...


def silent(step: int, residual: float, /) -> None:
    """The report that says nothing."""


class Inverse(Protocol):
    """An operator made ready to be solved with: what depends on the operator alone has been paid."""

    def solve(self, rhs: Tensor, report: Report = silent) -> Solution:
        """Solve for `rhs` `[dim]` or `[dim, k]`; columns are independent right-hand sides."""
        ...


class Solver(Protocol):
    """A frozen record of hyper-parameters that can make operators ready to be solved with."""

    def prepare(self, operator: LinearOperator) -> Inverse:
        """Pay what depends on the operator alone (a factorisation, a scale)."""
        ...


def solve(operator: LinearOperator, rhs: Tensor, solver: Solver) -> Solution:
    """Solve one system: `solver.prepare(operator).solve(rhs)`.

    Example:
        >>> import torch
        >>> from stagetrace.curvature.operator import DenseOperator
        >>> from stagetrace.solvers import Direct
        >>> A = DenseOperator(torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
        >>> solve(A, torch.tensor([2.0, 2.0], dtype=torch.float64), Direct()).value
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    return solver.prepare(operator).solve(rhs)
