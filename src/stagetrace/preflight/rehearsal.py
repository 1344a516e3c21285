"""A stage's solve, rehearsed: the same solver on the curvature of as many examples as a bound on the work allows.

All that goes over examples grows with their number and is scaled by it, and by how much slower an example is in a chunk
of the run's size, of which two products are made; all else (the vectors of a Krylov method, an
eigendecomposition) is as large in the rehearsal as it is in the run. How many products a solve takes is known once it
ends: over all examples the rehearsal is the solve itself, over some it takes about as many products. One that does not
end within the work is continued in thought, at the rate at which the last half of its residuals fell.
"""

from dataclasses import is_dataclass, replace
from math import inf, isnan, log
from typing import Any

import torch
from torch import Tensor

from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.ekfac.operator import measured_on
from stagetrace.curvature.memory import allowance
from stagetrace.curvature.operations import counted_operations
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import SolveError
from stagetrace.preflight.meter import Seconds, metered
from stagetrace.preflight.solve_estimate import SolveEstimate
from stagetrace.preflight.timed_operator import OverExamples, TimedOperator
from stagetrace.preflight.tracing_cost import with_tracing
from stagetrace.solvers import Direct
from stagetrace.solvers.base import Solution, Solver, solve
from stagetrace.solvers.settings import step_limit
from stagetrace.solvers.together import MANY, tolerance
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.risk import Risk
from stagetrace.tracing.responses.shortfall import shortfall

__all__ = ["rehearse"]

OPERATIONS = 2e11
"""Floating-point operations (of matrix products and convolutions) that rehearsing one stage's solve may take."""

PRODUCTS, PER_COLUMN, TOGETHER = 60, 40, 3
"""Products that are reckoned with when examples are chosen: of the spectrum, of each right-hand side by itself, and of
each of many that are solved together."""

FITTING = 8
"""The same of fitting an approximation whose inverse is in closed form."""

PASSES = 6.0
"""Forward passes over the same examples that a product is reckoned as."""

PROBED, FEWEST = 4, 8

BLOCK, LARGEST = 8, 512
"""Columns of a dense matrix that are multiplied, and rows of one that is decomposed, to time a direct solve."""


class _EnoughError(Exception):
    """The work that a rehearsal may take is done."""


def rehearse(
    bound: BoundStage, curvature: Curvature, planned: LinearOperator, solver: Solver, rhs: Tensor
) -> SolveEstimate:
    """Solve for `rhs` `[dim, k]` over as many examples as `OPERATIONS` allow.

    planned: the curvature's operator over all its examples.
    """
    of = _examples(bound, curvature, planned)
    each = PASSES * _forward(bound)
    dense = isinstance(solver, Direct) and planned.approximates is None and of > 0
    columns = rhs.shape[1]
    wanted = PRODUCTS + (TOGETHER * columns + PER_COLUMN * MANY if columns >= MANY else PER_COLUMN * columns)
    if isinstance(solver, Direct):
        wanted = bound.trained.size if dense else FITTING
    few = min(of, max(FEWEST, int(OPERATIONS / (each * wanted))))
    operator = planned if few >= of else _over(bound, curvature, few, of)
    if operator is None:
        operator, few = planned, of
    if dense and bound.trained.size * each * few > 2 * OPERATIONS:
        return _dense(bound, operator, rhs, few, of)
    seen = OverExamples()
    most = 2 * OPERATIONS / max(1.0, each * few)

    def enough() -> None:
        if seen.products > max(most, 2):
            raise _EnoughError

    seen.enough = enough
    timed = TimedOperator(operator, seen)
    found = _solved(timed, solver, rhs, bound.risk, few, of)
    seen.enough = lambda: None  # what follows is a product or two
    products = [round(part.products * found.products / max(1, seen.products)) for part in timed.parts()]
    cost = planned.cost()
    if few >= of or cost is None:
        return found
    chunk = min(of, max(few, cost.chunk_examples), max(few, int(OPERATIONS / (4 * each))))
    if chunk > few:
        found = _at_size(found, timed, bound, curvature, chunk)
    whole = TimedOperator(planned, OverExamples()).parts(asked=timed)
    for part, large, number in zip(timed.parts(), whole, products, strict=True):
        found = with_tracing(found, part.inner, large.inner, number, cost.chunk_examples)
    return found


def _solved(timed: TimedOperator, solver: Solver, rhs: Tensor, risk: Risk, few: int, of: int) -> SolveEstimate:
    seen, solution, history, ended = timed.seen, None, list[float](), True

    def report(step: int, residual: float, /) -> None:
        del step
        history.append(residual)

    with metered() as taken:
        try:
            solution = solve(timed, rhs, solver, report)
        except _EnoughError:
            ended = False
        except SolveError:  # it is the run's to say; a solve over fewer examples may fail where the run's does not
            ended = few >= of
    more = 1.0 if ended else _continued(history, tolerance(getattr(solver, "rtol", "auto"), rhs.shape[1]), solver)
    scale = of / few if few else 1.0
    over, beside = seen.seconds * (more * scale), (taken.seconds - seen.seconds) * more
    if seen.rows:  # a Gram matrix of so many rows, and its factor
        beside = beside * scale**2
    held = int(max((cost.cached_bytes for cost in timed.costs()), default=0) * (scale - 1))
    if solution is not None:
        beside = beside + _shortfall(timed.inner, rhs, solution, risk, few, of)
    adjoint = rhs if solution is None else solution.value.reshape(rhs.shape)
    products = round(seen.products * more)
    return SolveEstimate(adjoint, solution, over, beside, taken.peak + held, few, of, products, ended, seen.rows)


def _shortfall(operator: LinearOperator, rhs: Tensor, solution: Solution, risk: Risk, few: int, of: int) -> Seconds:
    """Seconds of saying how far an approximation's answer is off, which goes over no more than so many examples."""
    if operator.approximates is None:
        return Seconds()
    with metered() as taken:
        shortfall(operator, rhs, solution)
    return taken.seconds * (measured_on(risk, of) / measured_on(risk, few))


def _at_size(
    found: SolveEstimate, timed: TimedOperator, bound: BoundStage, curvature: Curvature, chunk: int
) -> SolveEstimate:
    """The rehearsal with what two products over a chunk of the run's size say: how slow an example is, and the peak."""
    whole = _over(bound, curvature, chunk, found.of)
    if whole is None:
        return found
    peak, slower, vector = found.peak, 1.0, torch.randn(bound.trained.size, 1).to(timed.device, timed.dtype)
    for small, large in zip(timed.parts(), TimedOperator(whole, OverExamples()).parts(asked=timed), strict=True):
        small.apply(vector)
        started = Seconds.now()
        small.apply(vector)
        few = Seconds.now() - started
        small.release()
        with metered() as taken:
            large.apply(vector)
            started = Seconds.now()
            large.apply(vector)
            many = Seconds.now() - started
        slower = many.cpu / chunk / max(1e-9, few.cpu / found.examples)  # of the last: most products are with it
        cost = large.cost()
        held = 0 if cost is None else int(cost.cached_bytes * (found.of / chunk - 1))
        peak = max(peak, taken.peak + held)
        large.release()
    return replace(found, over=found.over * min(4.0, max(0.25, slower)), peak=peak)


def _continued(history: list[float], rtol: float, solver: Any) -> float:
    """How many times the steps so far a solve takes, if residuals go on falling as in the last half of them."""
    falling = [residual for residual in history if not isnan(residual) and 0 < residual < inf]
    limit = (step_limit(solver) or 10 * len(history) or 1) / max(1, len(falling))
    if len(falling) < 4:
        return min(2.0, limit)
    half = falling[len(falling) // 2 :]
    rate = log(max(half[0], 1e-300) / max(min(half), 1e-300)) / max(1, len(half) - 1)
    if rate <= 0:
        return limit
    left = max(0.0, log(min(half) / rtol)) / rate
    before = len(history) - len(falling)
    return min((before + len(falling) + left) / len(history), max(1.0, limit))


def _dense(bound: BoundStage, operator: LinearOperator, rhs: Tensor, few: int, of: int) -> SolveEstimate:
    """A direct solve from a few columns of its matrix and the decomposition of a smaller one."""
    size, block = bound.trained.size, min(BLOCK, bound.trained.size)
    with metered() as taken:
        operator.apply(torch.eye(size, block, dtype=operator.dtype, device=operator.device))
        first = Seconds.now()
        operator.apply(torch.eye(size, block, dtype=operator.dtype, device=operator.device))
        product = (Seconds.now() - first) * (of / few / block)
        small = torch.randn(min(LARGEST, size), min(LARGEST, size), dtype=torch.float64)
        first = Seconds.now()
        torch.linalg.eigh(small + small.mT)
        decomposed = (Seconds.now() - first) * (size / len(small)) ** 3
    work_space = 4 * 8 * size**2
    return SolveEstimate(rhs, None, product * size, decomposed, taken.peak + work_space, few, of, size, True, 0)


def _examples(bound: BoundStage, curvature: Curvature, planned: LinearOperator) -> int:
    """How many examples the curvature averages over; 0 where a product does not go over examples."""
    cost = planned.cost()
    if cost is not None:
        return cost.examples
    return len(curvature.indices(bound)) if planned.approximates is not None else 0


def _over(bound: BoundStage, curvature: Curvature, few: int, of: int) -> LinearOperator | None:
    """The same kind of curvature over fewer examples, by the same way: its memory shrinks with them."""
    if not is_dataclass(curvature) or not hasattr(curvature, "examples"):
        return None
    changes: dict[str, Any] = {"examples": few}
    if hasattr(curvature, "memory"):
        asked = allowance(getattr(curvature, "memory"), bound.trained.device)  # noqa: B009
        changes["memory"] = max(1, int(asked * few / of))
    if getattr(curvature, "cache", None) is not None:
        changes["cache"] = None
    return replace(curvature, **changes).operator(bound)  # pyright: ignore[reportArgumentType]


def _forward(bound: BoundStage) -> float:
    """Floating-point operations of an example's forward pass."""
    few = range(min(PROBED, len(bound.risk.examples)))
    probe = next(iter(bound.risk.read([few])))
    return max(counted_operations(bound.risk, probe) / len(few), 2.0 * bound.trained.size, 1.0)
