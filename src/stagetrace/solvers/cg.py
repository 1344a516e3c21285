"""Conjugate gradients: `A x = b` with `A = H + lambda I` positive definite, preconditioned or not.

Differs from SciPy's `cg` in four ways. It stops at non-positive curvature and says so, where SciPy goes on and
returns numbers. It returns its best iterate by residual, not the last. When the recurrence claims convergence the
residual is measured by a product, and if the claim is wrong (rounding, in float32 above all) the recurrence
starts again from the measured residual for as long as that at least halves it. And its stopping rule is relative
only.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, final

from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import ColumnSolutions, Damping, Prepared, require_shift
from stagetrace.solvers.batched import run_batched
from stagetrace.solvers.conjugate_gradients import CGSettings, conjugate_gradients
from stagetrace.solvers.damping import rule_of
from stagetrace.solvers.filters import Shift
from stagetrace.solvers.iteration import Report
from stagetrace.solvers.numerics import stack_columns
from stagetrace.solvers.settings import check_count, check_rtol, check_rule, short_repr
from stagetrace.solvers.system import System


@final
@dataclass(frozen=True)
class CG:
    """Conjugate gradients for `(H + damping I) x = b`, one product per column and step.

    damping: a number of at least 0, or "auto": from the extreme eigenvalues. Where the operator has a positive
        semi-definite approximation `G` and negative eigenvalues, that is `(G + |smallest| I) x = b`; else the damping
        makes the smallest eigenvalue of `H + damping I` as large as the most negative one of `H`; see `damping.py`.

    Indefinite curvature ends the run with `Status.INDEFINITE`; a note holds the curvature that was met.

    Raises:
        DescriptionError: a setting out of range.

    Source: Hestenes & Stiefel (1952), Methods of conjugate gradients for solving linear systems; with a preconditioner
        Golub & Van Loan (2013), algorithm 11.5.1.

    Example:
        >>> import torch
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> from stagetrace.solvers import solve
        >>> H = DiagonalOperator(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> solution = solve(H, torch.tensor([2.0, 4.0], dtype=torch.float64), CG(damping=1.0))
        >>> solution.value.round(decimals=6), solution.products, solution.status.value
        (tensor([1., 1.], dtype=torch.float64), 2, 'converged')
    """

    damping: float | Literal["auto"] | Damping = 0.0
    rtol: float = 1e-5
    max_steps: int = 1000

    def __post_init__(self) -> None:
        check_rule("CG", self.damping)
        check_rtol("CG", self.rtol)
        check_count("CG", "max_steps", self.max_steps, 1000)

    def __str__(self) -> str:
        return short_repr(self)

    @property
    def rule(self) -> Damping:
        return rule_of(self.damping, Shift)

    def prepare(self, system: System, preconditioner: LinearOperator | None = None) -> Prepared:
        require_shift("CG", system)
        settings = CGSettings(self.rtol, self.max_steps, system.linear.damping, preconditioner)
        return Prepared(system, partial(self._solve, system.operator, settings))

    def _solve(
        self, operator: LinearOperator, settings: CGSettings, columns: Tensor, report: Report
    ) -> ColumnSolutions:
        run = run_batched(operator, [conjugate_gradients(column, settings) for column in columns.unbind(1)], report)
        return ColumnSolutions(
            value=stack_columns([end.value for end in run.outcomes], columns),
            residuals=tuple(end.residual for end in run.outcomes),
            statuses=tuple(end.status for end in run.outcomes),
            products=run.products,
            checks=run.checks,
            steps=max((end.steps for end in run.outcomes), default=0),
            tolerance=self.rtol,
            notes=tuple(dict.fromkeys(note for end in run.outcomes for note in end.notes)),
        )
