"""Lanczos: the paper's damped system with one product a step, and every damping from one run.

Conjugate gradients on `(H^2 + lambda I) x = H b` spend two products a step and search the powers of `H^2` applied to
`H b`. A Lanczos run on H spends one and searches all powers of H applied to b; the damping enters only in the small
projected problem (`shifted_qr.py`), so a sweep over dampings costs no further product.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, final

from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import refuse
from stagetrace.solvers.auto import Chosen, choose_damping
from stagetrace.solvers.base import Report, Solution, Spectrum, silent
from stagetrace.solvers.filters import Filter, Shift, Tikhonov
from stagetrace.solvers.krylov import Answer, Krylov, Memory, run_lanczos
from stagetrace.solvers.lockstep import lockstep
from stagetrace.solvers.numerics import as_columns, stacked
from stagetrace.solvers.settings import check_count, check_damping, check_rtol, compact


@final
@dataclass(frozen=True)
class Lanczos:
    """`(H^2 + damping I) x = H b` for any symmetric `H`, one product per column and step.

    damping: a number of at least 0 (0 is the plain inverse), or "auto": from the ends of the spectrum, see `auto.py`;
        the Solution's notes say what was chosen. Where the spectrum has a negative end and the operator a positive
        semi-definite stand-in `G` (the default curvature has), that is `(G + |smallest| I) x = b`.
    filter: `Tikhonov` (the above) or `Shift` for `(H + damping I) x = b`, then with the least residual of the Krylov
        space (MINRES), safe for indefinite `H`.
    memory: bytes for the basis. While it fits it is kept and the run stays orthogonal to rounding; several
        columns are solved in groups that fit. Where a single column's basis does not fit, a short recurrence
        solves all columns with a few vectors each: the same answer, with somewhat more steps.

    The run ends when the residual passes `rtol`, when the Krylov space is exhausted (the answer is then exact),
    or at `max_steps`. The Solution's residual is measured afterwards; above `rtol` it is never `CONVERGED`.

    Raises:
        DescriptionError: a setting out of range.

    Source: Lanczos (1950); Paige & Saunders (1975); the damped projection is derived in `shifted_qr.py`.

    Example:
        >>> import torch
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> H = DiagonalOperator(torch.tensor([1.0, -2.0], dtype=torch.float64))
        >>> solution = Lanczos(damping=1.0).prepare(H).solve(torch.tensor([2.0, 5.0], dtype=torch.float64))
        >>> solution.value.round(decimals=6), solution.products, [round(h, 6) for h in solution.spectrum.ritz]
        (tensor([ 1., -2.], dtype=torch.float64), 2, [-2.0, 1.0])
    """

    damping: float | Literal["auto"] = "auto"
    rtol: float = 1e-4
    max_steps: int = 500
    filter: Callable[[float], Filter] = Tikhonov
    memory: int = 2 * 2**30

    def __post_init__(self) -> None:
        if self.damping == "auto":
            if self.filter is not Tikhonov:
                refuse(
                    "Lanczos(damping='auto') chooses for (H^2 + damping I) x = H b; with another filter type a number, "
                    "such as Lanczos(damping=0.01, filter=Shift)"
                )
        else:
            check_damping("Lanczos", self.damping)
        check_rtol("Lanczos", self.rtol)
        check_count("Lanczos", "max_steps", self.max_steps, 500)
        check_count("Lanczos", "memory", self.memory, 2 * 2**30)

    def __str__(self) -> str:
        return compact(self)

    def prepare(self, operator: LinearOperator) -> "LanczosInverse":
        return LanczosInverse(self, operator)

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
        columns = as_columns(operator, rhs)
        filters = [self.filter(damping) for damping in dampings]
        memory = Memory.plan(columns, len(filters), self.max_steps, self.memory)
        runs: list[Krylov] = []
        products = done = 0
        for group in columns.split(memory.group, dim=1):
            processes = [run_lanczos(b, filters, memory, self.rtol, self.max_steps) for b in group.unbind(1)]
            finished = lockstep(operator, processes, partial(_later, report, done))
            runs.extend(finished.outcomes)
            products, done = (
                products + finished.products,
                done + max((run.steps for run in finished.outcomes), default=0),
            )
        return tuple(self._solution(operator, rhs, filters[j], runs, j, products) for j in range(len(filters)))

    def _solution(
        self, operator: LinearOperator, rhs: Tensor, filter: Filter, runs: Sequence[Krylov], j: int, products: int
    ) -> Solution:
        columns = as_columns(operator, rhs)
        answers: list[Answer] = [run.answers[j] for run in runs]
        value = stacked([answer.value for answer in answers], rhs)
        measured = filter.measure(operator, columns, value.reshape(columns.shape), [run.image for run in runs])
        ended = list(zip(answers, measured.residuals, strict=True))
        ritz = sorted(theta for run in runs for theta in run.ritz)
        return Solution(
            value=value,
            system=filter.system,
            relative_residuals=measured.residuals,
            products=products,
            checks=measured.checks,
            steps=max((run.steps for run in runs), default=0),
            statuses=tuple(answer.status(residual, self.rtol) for answer, residual in ended),
            tolerance=self.rtol,
            spectrum=Spectrum(tuple(ritz)) if ritz else None,
            notes=tuple(dict.fromkeys(n for answer, residual in ended for n in answer.notes(residual, self.rtol))),
        )


@final
@dataclass(frozen=True)
class LanczosInverse:
    """An operator about to be solved with by Lanczos: in advance, only a damping is chosen where none was given."""

    solver: Lanczos
    operator: LinearOperator
    _found: list[Chosen] = field(default_factory=list[Chosen], init=False, repr=False, compare=False)

    def chosen(self, report: Report = silent) -> Chosen | None:
        """The damping that "auto" found, once for all right-hand sides; None where one was given."""
        if self.solver.damping != "auto":
            return None
        if not self._found:
            self._found.append(choose_damping(self.operator, report=report))
        return self._found[0]

    def solve(self, rhs: Tensor, report: Report = silent) -> Solution:
        as_columns(self.operator, rhs)  # a bad right-hand side is refused before any product
        chosen, damping = self.chosen(report), self.solver.damping
        if chosen is None or damping != "auto":
            return self.solver.sweep(self.operator, rhs, (float(damping),), report)[0]
        definite, then = self.operator.definite if chosen.indefinite else None, partial(_later, report, chosen.products)
        if definite is None:
            note, solution = chosen.note, self.solver.sweep(self.operator, rhs, (chosen.damping,), then)[0]
        else:
            note, shifted = chosen.note_of_stand_in, replace(self.solver, damping=chosen.cut, filter=Shift)
            solution = shifted.sweep(definite, rhs, (chosen.cut,), then)[0]
            # the spectrum stays the Hessian's: it says that the stage is not at a minimum
            solution = replace(solution, system=solution.system.replace("H", "G"), spectrum=chosen.spectrum)
        return replace(solution, products=solution.products + chosen.products, notes=(note, *solution.notes))


def _later(report: Report, done: int, step: int, residual: float) -> None:
    """Report a step that comes after `done` others."""
    report(done + step, residual)
