"""The contract of every solver: prepare a system once, solve for many right-hand sides, report how well.

A solver sees a `LinearOperator` and vectors; it never sees a model, a data set or a process group. It is a frozen
record of hyper-parameters, checked on construction. Its damping rule makes the `System` of an operator. The outcome is
a value: every solve returns a `Solution`, whose residual is measured by extra products with the operator and not taken
from a recurrence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, final

from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import SolveError, refuse
from stagetrace.solvers.iteration import Report, silent
from stagetrace.solvers.numerics import as_columns
from stagetrace.solvers.system import Equation, FlowSegments, RecordedSteps, Spectrum, System
from stagetrace.solvers.vectors import in_pieces


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
class Solution:
    """The answer of a linear solve, and how good it is.

    value: `[dim]` or `[dim, k]`, in the shape of the right-hand side.
    system: the equation solved; its `str` is, e.g., `(H^2 + 0.01 I) x = H b`.
    relative_residuals: one per column, of that equation, `|rhs - A x| / |rhs|`, measured by true products.
    products: operator-vector products spent on solving, over all columns; `checks`: those spent on measuring.
    steps: iterations of the slowest column.
    statuses: one per column.
    spectrum: eigenvalue estimates, where the method yields them.
    tolerance: the relative residual that was asked for.
    """

    value: Tensor
    system: Equation | RecordedSteps | FlowSegments
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


class Damping(Protocol):
    """A rule that makes the system of an operator: which matrix is inverted, and how it is damped."""

    def __call__(self, operator: LinearOperator, report: Report = silent) -> System:
        """The system to solve; the products that the rule needs are spent here."""
        ...

    def with_spectrum(self, operator: LinearOperator, spectrum: Spectrum) -> System:
        """The system for an operator whose extreme eigenvalues are known, without a product."""
        ...

    def scaled(self, factor: float) -> "Damping":
        """The same rule with its damping multiplied by `factor`."""
        ...


class Inverse(Protocol):
    """A system ready to be solved: the work that depends on the operator alone is done."""

    def solve(self, rhs: Tensor, report: Report = silent) -> Solution:
        """Solve for `rhs` `[dim]` or `[dim, k]`; columns are independent right-hand sides."""
        ...


class Solver(Protocol):
    """A frozen record of hyper-parameters that prepares systems to be solved."""

    @property
    def rule(self) -> Damping:
        """The damping rule, which makes the system of an operator."""
        ...

    def prepare(self, system: System, preconditioner: LinearOperator | None = None) -> Inverse:
        """Do the work that depends on the operator alone (a factorisation, a scale).

        preconditioner: a positive definite operator near the system's inverse; refused by a solver that uses none.
        """
        ...


@final
@dataclass(frozen=True)
class ColumnSolutions:
    """An algorithm's answers for the columns `[dim, k]` of a right-hand side; fields as in `Solution`."""

    value: Tensor
    residuals: tuple[float, ...]
    statuses: tuple[Status, ...]
    products: int
    checks: int
    steps: int
    tolerance: float
    spectrum: Spectrum | None = None
    notes: tuple[str, ...] = ()


@final
class Prepared:
    """A system and the algorithm that solves it; products of the preparation are counted in the first solve.

    algorithm: from the columns `[dim, k]` and a report to their solutions. setup: products of the preparation.
    """

    def __init__(self, system: System, algorithm: Callable[[Tensor, Report], ColumnSolutions], setup: int = 0) -> None:
        self.system, self._algorithm = system, algorithm
        self._uncounted = system.products + setup

    def solve(self, rhs: Tensor, report: Report = silent) -> Solution:
        """Solve for `rhs` `[dim]` or `[dim, k]`; columns are independent right-hand sides."""
        with in_pieces(self.system.operator.shares):
            found = self._algorithm(as_columns(self.system.operator, rhs), report)
        setup, self._uncounted = self._uncounted, 0
        return solution(self.system, found, rhs, setup)


def solution(system: System, found: ColumnSolutions, rhs: Tensor, setup: int = 0) -> Solution:
    """The columns' solutions as one `Solution`, in the shape of the right-hand side."""
    # where G is inverted in place of H, it is the spectrum of H that says whether the stage is at a minimum
    spectrum = system.spectrum if system.matrix == "G" or found.spectrum is None else found.spectrum
    return Solution(
        value=found.value.reshape(rhs.shape),
        system=system.equation,
        relative_residuals=found.residuals,
        products=found.products + setup,
        checks=found.checks,
        steps=found.steps,
        statuses=found.statuses,
        tolerance=found.tolerance,
        spectrum=spectrum,
        notes=(*system.notes, *found.notes),
    )


def solve(operator: LinearOperator, rhs: Tensor, solver: Solver, report: Report = silent) -> Solution:
    """Solve the system that the solver's damping rule makes of an operator.

    Example:
        >>> import torch
        >>> from stagetrace.curvature.operator import DenseOperator
        >>> from stagetrace.solvers import Direct
        >>> A = DenseOperator(torch.tensor([[2.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
        >>> solve(A, torch.tensor([2.0, 2.0], dtype=torch.float64), Direct()).value
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    as_columns(operator, rhs)  # a bad right-hand side is refused before any product
    system = solver.rule(operator, report)
    return solver.prepare(system).solve(rhs, counted_from(report, system.products))


def counted_from(report: Report, done: int) -> Report:
    """A report whose steps are counted on from `done`."""
    return (lambda step, residual, /: report(done + step, residual)) if done else report


def require_shift(who: str, system: System) -> None:
    """Refuse a system that a solver of `(H + damping I) x = b` does not solve.

    Raises:
        DescriptionError: the filter is another.
    """
    if system.linear.shift.imag:
        refuse(f"{who} solves (H + damping I) x = b, got {system}; use Lanczos, or Normal({who}(), damping=...)")


def refuse_preconditioner(who: str, preconditioner: LinearOperator | None) -> None:
    """Refuse a preconditioner that would not be used.

    Raises:
        DescriptionError: there is one.
    """
    if preconditioner is not None:
        refuse(f"{who} takes no preconditioner; use CG(...).prepare(system, preconditioner)")
