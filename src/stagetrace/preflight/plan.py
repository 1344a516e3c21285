"""The cost of a run: memory and time of solving and of scoring, from measured products and one batch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log, sqrt
from typing import final

from stagetrace.checks.finding import Finding, Level
from stagetrace.curvature.auto import coupling_indices
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.operator import LinearOperator
from stagetrace.preflight.work import Look
from stagetrace.progress.task import clock
from stagetrace.solvers import Direct, EarlyStopping, Lanczos
from stagetrace.solvers.base import Solver
from stagetrace.solvers.damping import SPECTRUM_STEPS
from stagetrace.solvers.settings import step_limit
from stagetrace.solvers.together import tolerance
from stagetrace.stages.bound import BoundStage
from stagetrace.tracing.query import Query
from stagetrace.tracing.score import Scorer


@final
@dataclass(frozen=True)
class Estimate:
    """Seconds of one part of a run; None where there is no estimate."""

    seconds: float | None
    finding: Finding


def plan_solve(
    bound: BoundStage, curvature: Curvature, operator: LinearOperator, solver: Solver, look: Look, columns: int
) -> Estimate:
    """How products are computed, the memory they hold, how many there can be, and how long that takes at most.

    The time includes the coupling to the stage before, which costs about a product over its examples.
    """
    most = most_products(bound, operator, solver, look)
    text, seconds = f"{solver}: {look.seconds:.2g} s a product", None
    if most is not None:
        passes = len(coupling_indices(curvature, bound, columns)) / max(1, look.of) if bound.inherited_from else 0.0
        seconds = look.seconds * (most + passes) * columns
        each = f"{columns:,} x " if columns > 1 else ""
        text = f"{solver}: at most {each}{most:,} products x {look.seconds:.2g} s, {clock(seconds)} in all"
    if look.cost is None:
        return Estimate(seconds, Finding(bound.name, "solving", Level.OK, text))
    way = f"{look.cost.way}, {look.cost.cached_bytes / 2**20:,.0f} MiB in memory"
    text += f"; over {look.of:,} of {len(bound.stage.examples):,} examples ({way})"
    level = Level.NOTE if look.cost.limitations else Level.OK
    return Estimate(seconds, Finding(bound.name, "solving", level, "; ".join((text, *look.cost.limitations[:1]))))


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


def plan_scoring(bound: BoundStage, query: Query) -> Estimate:
    """Which way scores are computed, and how long reading the examples and scoring them will take."""
    columns = query.rows or 1
    scorer = Scorer.of(bound.risk, bound.trained.zeros(columns), parts=False, rows=query.rows)
    started = time.perf_counter()
    batch = next(iter(bound.risk.read(bound.risk.examples.batch_indices(size=scorer.at_once)[:1])))
    read = time.perf_counter() - started
    started = time.perf_counter()
    scorer.contract(batch)
    examples = len(bound.stage.examples)
    scored = (time.perf_counter() - started) / len(batch) * examples
    twice = 2 * read / len(batch) * examples  # once for their digest, once to score them
    text = (
        f"{examples:,} examples by {scorer.way} ({scorer.why}): about {clock(scored)}, and {clock(twice)} to read them"
        " twice"
    )
    level = Level.OK if scorer.way in ("forward mode", "layer by layer") else Level.NOTE
    return Estimate(scored + twice, Finding(bound.name, "scoring", level, text))


def total(costs: Sequence[Estimate]) -> Finding:
    """What a run takes at most, without the query's gradient and the report."""
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    more = "" if len(known) == len(costs) else ", and the parts without a limit"
    text = f"at most {clock(sum(known))} on this machine now{more}; a solve that converges early takes less"
    return Finding("run", "time", Level.OK, text)
