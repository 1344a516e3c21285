"""Lanczos: the paper's damped system with one product a step, and every damping from one run.

Conjugate gradients on `(H^2 + lambda I) x = H b` spend two products a step and search the powers of `H^2` applied to
`H b`. A Lanczos run on H spends one and searches all powers of H applied to b; the damping enters only in the small
projected problem (`shifted_qr.py`), so a sweep over dampings costs no further product.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, final

from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import refuse
from stagetrace.solvers.base import (
    ColumnSolutions,
    Damping,
    Prepared,
    Solution,
    counted_from,
    refuse_preconditioner,
    solution,
)
from stagetrace.solvers.batched import run_batched
from stagetrace.solvers.damping import rule_of
from stagetrace.solvers.filters import Filter, Tikhonov
from stagetrace.solvers.iteration import Report, silent
from stagetrace.solvers.krylov import Answer, Krylov, Memory, run_lanczos
from stagetrace.solvers.numerics import as_columns, stack_columns
from stagetrace.solvers.settings import check_count, check_damping, check_rtol, check_rule, short_repr
from stagetrace.solvers.system import Spectrum, System
from stagetrace.solvers.together import MODES, Many, Mode, NotSharedError, tolerance, tolerance_note


@final
@dataclass(frozen=True)
class Lanczos:
    """`(H^2 + damping I) x = H b` for any symmetric `H`, one product per column and step.

    damping: a number of at least 0 (0 is the plain inverse), or "auto": from the extreme eigenvalues, see
        `damping.py`; the Solution's notes say what was chosen. Where the operator is indefinite and has a positive
        semi-definite approximation `G` (the default curvature has), "auto" solves `(G + |smallest| I) x = b`.
    filter: `Tikhonov` (the above) or `Shift` for `(H + damping I) x = b`, then with the least residual of the Krylov
        space (MINRES), safe for indefinite `H`.
    memory: bytes for the basis, of which each process stores its part. While it fits it is stored and the run stays
        orthogonal to rounding; several columns are solved in groups that fit. Where a single column's basis does not
        fit, a short recurrence solves all columns with a few vectors each: the same answer, with somewhat more steps.
    rtol: the relative residual asked for. "auto" is 1e-4, and 1e-2 for 10 or more right-hand sides, which keeps scores
        to about a hundredth; where only the order of scores counts 0.1 does.
    many: how several right-hand sides of `(H + damping I) x = b` are solved. "auto" counts what is cheapest:
        "separate", a run for each; "shared basis", one run for all and a few steps each; "sample space", the inverse
        in the space of the examples of a Gauss-Newton matrix, see `together.py`. The notes say what was taken. Every
        column's residual is measured, whichever it is.

    The run ends when the residual passes `rtol`, when the Krylov space is exhausted (the answer is then exact),
    or at `max_steps`. The Solution's residual is measured afterwards; above `rtol` it is never `CONVERGED`.

    Raises:
        DescriptionError: a setting out of range.

    Source: Lanczos (1950); Paige & Saunders (1975); the damped projection is derived in `shifted_qr.py`.

    Example:
        >>> import torch
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> from stagetrace.solvers import solve
        >>> H = DiagonalOperator(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> solution = solve(H, torch.tensor([2.0, 5.0], dtype=torch.float64), Lanczos(damping=1.0))
        >>> solution.value.round(decimals=6), solution.products, [round(h, 6) for h in solution.spectrum.ritz]
        (tensor([ 1., -2.], dtype=torch.float64), 2, [-2.0, 1.0])
    """

    damping: float | Literal["auto"] | Damping = "auto"
    rtol: float | Literal["auto"] = "auto"
    max_steps: int = 500
    filter: type[Filter] = Tikhonov
    memory: int = 2 * 2**30
    many: Mode = "auto"

    def __post_init__(self) -> None:
        check_rule("Lanczos", self.damping)
        if self.rtol != "auto":
            check_rtol("Lanczos", self.rtol)
        if self.many not in MODES:
            refuse(f"Lanczos(many=...) must be one of {', '.join(map(repr, MODES))}, got {self.many!r}")
        check_count("Lanczos", "max_steps", self.max_steps, 500)
        check_count("Lanczos", "memory", self.memory, 2 * 2**30)

    def __str__(self) -> str:
        return short_repr(self)

    @property
    def rule(self) -> Damping:
        return rule_of(self.damping, self.filter)

    def prepare(self, system: System, preconditioner: LinearOperator | None = None) -> Prepared:
        refuse_preconditioner("Lanczos", preconditioner)
        return Prepared(system, partial(self._solve, replace(system, filter=system.linear)))

    def sweep(
        self, operator: LinearOperator, rhs: Tensor, dampings: Sequence[float], report: Report = silent
    ) -> tuple[Solution, ...]:
        """The solution for each damping, all from one run, which goes on until the hardest has converged.

        Each Solution has the value that a solve with its damping alone would have, and its own measured
        residual and checks. `products` and `steps` are those of the one run, in every Solution: do not add them up.

        Raises:
            DescriptionError: no dampings, one out of range, or a right-hand side that does not fit.
            SolveError: the right-hand side or a product is not finite.
        """
        if not dampings:
            refuse("Lanczos.sweep needs at least one damping, got none; type sweep(operator, rhs, [1e-3, 1e-2])")
        for damping in dampings:
            check_damping("Lanczos", damping)
        filters = [self.filter(damping) for damping in dampings]
        found = self._run(operator, as_columns(operator, rhs), filters, report)
        return tuple(solution(System(operator, one), each, rhs) for one, each in zip(filters, found, strict=True))

    def _solve(self, system: System, columns: Tensor, report: Report) -> ColumnSolutions:
        """Together where that is cheaper, else each column by itself."""
        many = Many(system, tolerance(self.rtol, columns.shape[1]), self.max_steps, self.memory, self.many)
        try:
            found = many.solve(columns, report)
        except NotSharedError as why:
            found = self._run(system.operator, columns, [system.linear], report)[0]
            found = replace(found, products=found.products + why.products, notes=(*found.notes, *why.notes))
        asked = tolerance_note(self.rtol, columns.shape[1])
        return found if asked is None else replace(found, notes=(*found.notes, asked))

    def _run(
        self, operator: LinearOperator, columns: Tensor, filters: Sequence[Filter], report: Report
    ) -> tuple[ColumnSolutions, ...]:
        """The solutions for each filter, the columns in groups whose bases fit into memory."""
        memory = Memory.plan(columns, len(filters), self.max_steps, self.memory, operator.shares)
        rtol = tolerance(self.rtol, columns.shape[1])
        runs: list[Krylov] = []
        products = done = 0
        for group in columns.split(memory.group, dim=1):
            iterations = [
                run_lanczos(b, filters, memory, rtol, self.max_steps, operator.shares) for b in group.unbind(1)
            ]
            finished = run_batched(operator, iterations, counted_from(report, done))
            runs.extend(finished.outcomes)
            products += finished.products
            done += max((run.steps for run in finished.outcomes), default=0)
        return tuple(self._found(operator, columns, filters[j], runs, j, products) for j in range(len(filters)))

    def _found(
        self, operator: LinearOperator, columns: Tensor, filter: Filter, runs: Sequence[Krylov], j: int, products: int
    ) -> ColumnSolutions:
        rtol = tolerance(self.rtol, columns.shape[1])
        answers: list[Answer] = [run.answers[j] for run in runs]
        value = stack_columns([answer.value for answer in answers], columns)
        measured = filter.measure(operator, columns, value, [run.image for run in runs])
        ended = list(zip(answers, measured.residuals, strict=True))
        ritz = sorted(theta for run in runs for theta in run.ritz)
        return ColumnSolutions(
            value=value,
            residuals=measured.residuals,
            statuses=tuple(answer.status(residual, rtol) for answer, residual in ended),
            products=products,
            checks=measured.checks,
            steps=max((run.steps for run in runs), default=0),
            tolerance=rtol,
            spectrum=Spectrum(tuple(ritz)) if ritz else None,
            notes=tuple(dict.fromkeys(n for answer, residual in ended for n in answer.notes(residual, rtol))),
        )
