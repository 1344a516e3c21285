"""Conjugate gradients: `(H + lambda I) x = b` for positive definite `H + lambda I`.

Differs from SciPy's `cg` in four ways. It stops at non-positive curvature and says so, where SciPy goes on and
returns numbers. It returns its best iterate by residual, not the last. When the recurrence claims convergence the
residual is measured by a product, and if the claim is wrong (rounding, in float32 above all) the recurrence
starts again from the measured residual for as long as that at least halves it. And the stopping rule is
relative alone.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import Report, Solution, Status, silent
from stagetrace.solvers.filters import Shift
from stagetrace.solvers.lockstep import Ask, Process, lockstep
from stagetrace.solvers.numerics import as_columns, dot, norm, norm_of_sum, stacked
from stagetrace.solvers.settings import check_count, check_damping, check_rtol, compact


@final
@dataclass(frozen=True)
class CG:
    """Conjugate gradients for `(H + damping I) x = b`, one product per column and step.

    Indefinite curvature ends the run with `Status.INDEFINITE`; a note holds the curvature that was met.

    Raises:
        DescriptionError: a setting out of range.

    Source: Hestenes & Stiefel (1952), Methods of conjugate gradients for solving linear systems.

    Example:
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> H = DiagonalOperator(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> solution = CG(damping=1.0).prepare(H).solve(torch.tensor([2.0, 4.0], dtype=torch.float64))
        >>> solution.value.round(decimals=6), solution.products, solution.status.value
        (tensor([1., 1.], dtype=torch.float64), 2, 'converged')
    """

    damping: float = 0.0
    rtol: float = 1e-5
    max_steps: int = 1000

    def __post_init__(self) -> None:
        check_damping("CG", self.damping)
        check_rtol("CG", self.rtol)
        check_count("CG", "max_steps", self.max_steps, 1000)

    def __str__(self) -> str:
        return compact(self)

    def prepare(self, operator: LinearOperator) -> "CGInverse":
        return CGInverse(self, operator)


@final
@dataclass(frozen=True)
class CGInverse:
    """An operator about to be solved with by conjugate gradients."""

    solver: CG
    operator: LinearOperator

    def solve(self, rhs: Tensor, report: Report = silent) -> Solution:
        columns = as_columns(self.operator, rhs)
        run = lockstep(
            self.operator, [conjugate_gradients(column, self.solver) for column in columns.unbind(1)], report
        )
        return Solution(
            value=stacked([end.value for end in run.outcomes], rhs),
            system=Shift(self.solver.damping).system,
            relative_residuals=tuple(end.residual for end in run.outcomes),
            products=run.products,
            checks=run.checks,
            steps=max((end.steps for end in run.outcomes), default=0),
            statuses=tuple(end.status for end in run.outcomes),
            tolerance=self.solver.rtol,
            notes=tuple(dict.fromkeys(note for end in run.outcomes for note in end.notes)),
        )


@final
@dataclass(frozen=True)
class _Iterate:
    """Where a descent stands: the answer, its relative residual, the steps done, how it ended and why."""

    value: Tensor
    residual: float
    steps: int
    status: Status
    notes: tuple[str, ...] = ()


def conjugate_gradients(rhs: Tensor, solver: CG) -> Process[_Iterate]:
    """Descend, measure, and descend again from the measured residual while that helps."""
    best = _Iterate(torch.zeros_like(rhs), 1.0, 0, Status.MAX_STEPS)
    size = norm(rhs)
    if size == 0:
        return _Iterate(best.value, 0.0, 0, Status.CONVERGED)
    residual_vector = rhs
    while True:
        found = yield from _descend(best, residual_vector, size, solver)
        image = yield Ask(found.value, found.residual, check=True)
        true = norm_of_sum((1.0, rhs), (-1.0, image), (-solver.damping, found.value)) / size
        if true <= solver.rtol:
            return _Iterate(found.value, true, found.steps, Status.CONVERGED)
        if found.status is not Status.CONVERGED or true > best.residual / 2:
            status = Status.STAGNATED if found.status is Status.CONVERGED else found.status
            kept, residual = (found.value, true) if true <= best.residual else (best.value, best.residual)
            return _Iterate(kept, residual, found.steps, status, found.notes)
        residual_vector = rhs - image - solver.damping * found.value
        best = _Iterate(found.value, true, found.steps, Status.MAX_STEPS)


def _descend(start: _Iterate, residual_vector: Tensor, size: float, solver: CG) -> Generator[Ask, Tensor, _Iterate]:
    """The textbook recurrence from `start`; the best iterate by its own account of the residual."""
    x, r, p = start.value, residual_vector, residual_vector
    rr = dot(r, r)
    best, best_residual, status, notes = x, rr**0.5 / size, Status.MAX_STEPS, ()
    steps = start.steps
    while steps < solver.max_steps:
        Ap = torch.add((yield Ask(p, best_residual)), p, alpha=solver.damping)
        steps += 1
        curvature = dot(p, Ap)
        if curvature <= 0:
            status, notes = Status.INDEFINITE, (_remedy(curvature / dot(p, p), solver.damping),)
            break
        x, r = torch.add(x, p, alpha=rr / curvature), torch.sub(r, Ap, alpha=rr / curvature)
        rr, previous = dot(r, r), rr
        residual = rr**0.5 / size
        if residual < best_residual:
            best, best_residual = x, residual
        if residual <= solver.rtol:
            status = Status.CONVERGED
            break
        # For a positive definite operator the residual rises at most by the root of the condition number.
        if residual * torch.finfo(r.dtype).eps > best_residual:
            status, notes = Status.SINGULAR, ("the right-hand side lies outside the operator's range: add damping",)
            break
        p = torch.add(r, p, alpha=rr / previous)
    return _Iterate(best, best_residual, steps, status, notes)


def _remedy(curvature: float, damping: float) -> str:
    # p'Ap / p'p is a Rayleigh quotient, so the smallest eigenvalue of H is at most this curvature less the damping.
    return (
        f"met curvature {curvature:.3g} along a search direction, so H has an eigenvalue of at most "
        f"{curvature - damping:.3g}: raise the damping above {damping - curvature:.3g}, use GaussNewton() "
        f"as the curvature, or solve the squared system with Normal(CG(), damping=...)"
    )
