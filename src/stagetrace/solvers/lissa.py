"""LiSSA: the Neumann series of the inverse, one (stochastic) product a step."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import refuse
from stagetrace.solvers.base import ColumnSolutions, Damping, Prepared, Status, refuse_preconditioner, require_shift
from stagetrace.solvers.damping import rule_of
from stagetrace.solvers.filters import Shift
from stagetrace.solvers.iteration import Report
from stagetrace.solvers.numerics import relative
from stagetrace.solvers.settings import check_count, check_rtol, check_rule, short_repr
from stagetrace.solvers.spectrum import extreme_ritz_values
from stagetrace.solvers.system import Spectrum, System
from stagetrace.solvers.vectors import norm

# Steps of Lanczos that find the largest eigenvalue, and the margin on it: a drawn sample's may be larger.
SCALE_STEPS = 12
MARGIN, SAMPLED_MARGIN = 1.1, 2.0
# A residual this many times its reference is not noise any more.
GROWTH = 10.0


@final
@dataclass(frozen=True)
class LiSSA:
    """`(H + damping I) x = b` by `u <- b + (I - (H + damping I) / s) u`, answer `x = u / s`.

    Converges if every eigenvalue of `H + damping I` lies strictly between 0 and `2 s`, slowly (as the condition
    number) even then. `scale="auto"` sets `s` from a few Lanczos steps on the full operator; their products are
    counted in the first solve.

    examples: draw this many examples for each product, by the seed; the answer is then noisy, no residual
        can stop the run, and all `max_steps` are made. `None` multiplies with the full operator, and `rtol` stops.

    Growth ends the run with `Status.DIVERGED`, the last finite value, and a note on what to raise.

    Raises:
        DescriptionError: a setting out of range.

    Source: Agarwal, Bullins & Hazan (2017); Koh & Liang (2017).

    Example:
        >>> from stagetrace.curvature.operator import DiagonalOperator
        >>> from stagetrace.solvers import solve
        >>> H = DiagonalOperator(torch.tensor([1.0, 3.0], dtype=torch.float64))
        >>> solve(H, torch.tensor([2.0, 4.0], dtype=torch.float64), LiSSA(damping=1.0, rtol=1e-6)).value
        tensor([1.0000, 1.0000], dtype=torch.float64)
    """

    damping: float | Literal["auto"] | Damping = 0.01
    rtol: float = 1e-2
    max_steps: int = 5000
    scale: float | Literal["auto"] = "auto"
    examples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_rule("LiSSA", self.damping)
        check_rtol("LiSSA", self.rtol)
        check_count("LiSSA", "max_steps", self.max_steps, 5000)
        if self.scale != "auto" and not 0 < self.scale < float("inf"):
            refuse(f"LiSSA(scale=...) must be positive or 'auto', got {self.scale!r}; type LiSSA(scale='auto') instead")
        if self.examples is not None:
            check_count("LiSSA", "examples", self.examples, 64)

    def __str__(self) -> str:
        return short_repr(self)

    @property
    def rule(self) -> Damping:
        return rule_of(self.damping, Shift)

    def prepare(self, system: System, preconditioner: LinearOperator | None = None) -> Prepared:
        require_shift("LiSSA", system)
        refuse_preconditioner("LiSSA", preconditioner)
        if self.scale != "auto":
            return Prepared(system, _Series(self, system, self.scale, ()).solve)
        scale, ritz, products = self.scale_of(system)
        return Prepared(system, _Series(self, system, scale, ritz).solve, setup=products)

    def scale_of(self, system: System) -> tuple[float, tuple[float, ...], int]:
        """`s` with a margin, from the rule's spectrum or a few Lanczos steps; the Ritz values and products."""
        spectrum, products = system.spectrum, 0
        if spectrum is None or system.matrix == "G":  # then the spectrum is that of H
            spectrum, products = extreme_ritz_values(system.operator, SCALE_STEPS, seed=self.seed)
        margin = MARGIN if self.examples is None else SAMPLED_MARGIN
        scale = margin * max(map(abs, spectrum.ritz)) + system.linear.damping
        return scale or 1.0, spectrum.ritz, products


@final
@dataclass(frozen=True)
class _State:
    """The columns after some steps: answers `[dim, k]`, residual estimates, statuses, products and steps so far."""

    value: Tensor
    residuals: tuple[float, ...]
    statuses: tuple[Status, ...]
    products: int = 0
    steps: int = 0


@final
class _Series:
    """The series for one system and one scale."""

    def __init__(self, solver: LiSSA, system: System, scale: float, ritz: tuple[float, ...]) -> None:
        self.solver, self.operator, self.scale, self.ritz = solver, system.operator, scale, ritz
        self.filter, self.damping = system.linear, system.linear.damping

    def solve(self, columns: Tensor, report: Report) -> ColumnSolutions:
        state = self._iterate(columns, report)
        measured = self.filter.measure(self.operator, columns, state.value)
        statuses = [
            status if status is Status.DIVERGED else self._status(residual)
            for status, residual in zip(state.statuses, measured.residuals, strict=True)
        ]
        return ColumnSolutions(
            value=state.value,
            residuals=measured.residuals,
            statuses=tuple(statuses),
            products=state.products,
            checks=measured.checks,
            steps=state.steps,
            tolerance=self.solver.rtol,
            spectrum=Spectrum(self.ritz) if self.ritz else None,
            notes=self._notes(Status.DIVERGED in statuses),
        )

    def _iterate(self, b: Tensor, report: Report) -> _State:
        # with x = u / s the recursion is x <- x + (b - (H + lambda I) x) / s: each product also gives the residual
        sizes = [norm(column) for column in b.unbind(1)]
        x, best = torch.zeros_like(b), [1.0] * len(sizes)
        residuals, statuses = [float(size > 0) for size in sizes], [Status.MAX_STEPS] * len(sizes)
        live = [j for j, size in enumerate(sizes) if size > 0]
        generator = torch.Generator().manual_seed(self.solver.seed)
        products = steps = 0
        while live and steps < self.solver.max_steps:
            # r = b - (H + lambda I) x
            r = b[:, live] - self._drawn(generator) @ x[:, live] - self.damping * x[:, live]
            products, steps = products + len(live), steps + 1
            going: list[int] = []
            for i, j in enumerate(live):
                residuals[j] = relative(norm(r[:, i]), sizes[j])
                statuses[j] = self._judge(residuals[j], best[j])
                best[j] = min(best[j], residuals[j])
                if statuses[j] is Status.MAX_STEPS:
                    going.append(i)
            live = [live[i] for i in going]
            x[:, live] += r[:, going] / self.scale  # x <- x + r / s
            report(steps, max(residuals))
        return _State(x, tuple(residuals), tuple(statuses), products, steps)

    def _drawn(self, generator: torch.Generator) -> LinearOperator:
        if self.solver.examples is None:
            return self.operator
        return self.operator.subsample(self.solver.examples, generator)

    def _judge(self, residual: float, best: float) -> Status:
        """A column's status: with the full operator the residual only falls, with samples it may stay as large."""
        sampled = self.solver.examples is not None
        if not residual <= GROWTH * (1.0 if sampled else best):
            return Status.DIVERGED
        return Status.CONVERGED if residual <= self.solver.rtol and not sampled else Status.MAX_STEPS

    def _status(self, residual: float) -> Status:
        return Status.CONVERGED if residual <= self.solver.rtol else Status.MAX_STEPS

    def _notes(self, diverged: bool) -> tuple[str, ...]:
        notes: list[str] = []
        if self.solver.examples is not None:
            notes.append(f"each product of the series drew {self.solver.examples} examples")
        if diverged:
            smallest = min(self.ritz, default=0.0)
            if smallest + self.damping < 0:
                notes.append(
                    f"diverged: H has an eigenvalue of at most {smallest:.3g}, raise the damping above {-smallest:.3g}"
                )
            else:
                notes.append(
                    f"diverged: an eigenvalue of H + damping I lies outside (0, {2 * self.scale:.3g}); raise the scale "
                    f"if it is too large, the damping if it is negative, or use Lanczos"
                )
        return tuple(notes)
