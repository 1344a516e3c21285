"""What a run will cost: memory and time of solving and of scoring, from one measured product and one batch."""

import time

from stagetrace.checks.finding import Finding, Level
from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import Solver
from stagetrace.stages.problem import Problem
from stagetrace.tracing.contract import contract
from stagetrace.tracing.query import Query
from stagetrace.tracing.score import Scorer


def plan_solve(problem: Problem, operator: LinearOperator, solver: Solver) -> Finding:
    """How products are computed, what they keep in memory, and how long the solve can take."""
    rhs = problem.own.zeros(1)
    operator.apply(rhs)  # set-up is paid here
    started = time.perf_counter()
    operator.apply(rhs)
    seconds = time.perf_counter() - started
    text, how = f"{solver}: {seconds:.3g} s a product", operator.how()
    if not how:
        return Finding(problem.name, "solving", Level.OK, text)
    text += f" over {how['examples']:,} examples ({how['way']}, keeps {int(how['kept bytes'] or 0) / 2**20:,.0f} MiB)"
    for what in ("no forward mode", "not traced"):
        if how[what]:
            return Finding(problem.name, "solving", Level.NOTE, f"{text}; {what}: {how[what]}")
    return Finding(problem.name, "solving", Level.OK, text)


def plan_scoring(problem: Problem, query: Query) -> Finding:
    """Which way scores are computed, and how long it will take."""
    columns = query.rows or 1
    scorer = Scorer.of(problem.risk, problem.own.zeros(columns), parts=False, rows=query.rows)
    plan = problem.stage.examples.plan()
    batch = next(iter(problem.risk.read(plan[:1])))
    started = time.perf_counter()
    contract(scorer.way, problem.risk, batch, scorer.adjoints)
    seconds = (time.perf_counter() - started) / len(batch) * len(problem.stage.examples)
    text = f"{len(problem.stage.examples):,} examples by {scorer.way} ({scorer.why}): about {seconds:.3g} s"
    level = Level.OK if scorer.way == "forward mode" else Level.NOTE
    return Finding(problem.name, "scoring", level, text)
