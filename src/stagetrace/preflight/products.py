"""The bound of a solve: how many products it can take at most, whatever the right-hand side."""

from math import ceil, log, sqrt

from stagetrace.checks.finding import Finding, Level
from stagetrace.curvature.operator import LinearOperator
from stagetrace.preflight.work import Look
from stagetrace.solvers import Direct, EarlyStopping, Lanczos
from stagetrace.solvers.base import Solver
from stagetrace.solvers.damping import SPECTRUM_STEPS
from stagetrace.solvers.settings import step_limit
from stagetrace.solvers.together import tolerance
from stagetrace.stages.bound import BoundStage


def solving(bound: BoundStage, operator: LinearOperator, solver: Solver, look: Look, columns: int) -> Finding:
    """How products are computed, how many there can be at most, and what one takes; the plan says what is expected."""
    text, most = f"{solver}: {look.seconds:.2g} s a product", most_products(bound, operator, solver, look)
    if most is not None:
        each = f"{columns:,} x " if columns > 1 else ""
        text = f"{solver}: at most {each}{most:,} products x {look.seconds:.2g} s"
    if look.cost is None:
        return Finding(bound.name, "solving", Level.OK, text)
    way = f"{look.cost.way}, {look.cost.cached_bytes / 2**20:,.0f} MiB in memory"
    text += f"; over {look.of:,} of {len(bound.stage.examples):,} examples ({way})"
    if look.cost.product_error is not None:
        text += f"; products in {look.cost.precision}, relative error {look.cost.product_error:.1e} on an example"
    level = Level.NOTE if look.cost.limitations else Level.OK
    return Finding(bound.name, "solving", level, "; ".join((text, *look.cost.limitations[:1])))


def most_products(bound: BoundStage, operator: LinearOperator, solver: Solver, look: Look) -> int | None:
    """Products of one right-hand side after which a solve has ended, by the eigenvalues' range or by its own limit.

    A Krylov solve of `(G + s I) x = b` needs `sqrt(condition) / 2 log(2 / rtol)` steps at most, one of
    `(H + i s I) z = b` with an indefinite `H` `largest / s log(2 / rtol)` (Greenbaum 1997, sections 3.1 and 3.2).
    None: no such bound.
    """
    if isinstance(solver, EarlyStopping):
        return solver.most_products(operator)
    system, size = solver.rule.with_spectrum(operator, look.spectrum), bound.trained.size
    looked = 0 if system.spectrum is None else min(SPECTRUM_STEPS, size)
    if isinstance(solver, Direct):
        known = operator.approximates is not None and operator.eigen() is not None
        return 0 if known else looked + size
    limit = step_limit(solver)
    if limit is None or not isinstance(solver, Lanczos):
        return limit if limit is None else looked + limit
    low, high = look.spectrum.smallest, max(abs(look.spectrum.smallest), abs(look.spectrum.largest))
    cut = abs(system.linear.shift)
    if not cut:
        return limit
    positive = not system.linear.shift.imag and (system.matrix == "G" or low >= 0)
    steps = (sqrt((high + cut) / cut) / 2 if positive else high / cut) * log(2 / tolerance(solver.rtol, 1))
    return looked + min(limit, size, ceil(steps))
