"""`queries`: what 1, 10, 100 and 1,000 queries cost, each by itself and together, in the same run.

Everything is in it but reading the data: the queries' gradients, the curvature's plan, the solve of
`(G + 0.01 I) x = b` over 1,000 examples to a relative residual of 0.01, every column's residual, and the scores of all
examples. Seconds are the processor's.

    each by itself    gradients one by one, a Krylov run for each column
    together          the library's default for many right-hand sides
    for a ranking     the same to a residual of 0.1
    shared basis      the same to 0.01 where no rows are to be had

Above `ALONE` queries the runs by themselves are not made: their gradients and solve are those of `ALONE` queries, as
many times as it takes, and marked so. Nor is the shared basis.
With `--rival PYTHON`, the interpreter of an environment with kronfluence, its EK-FAC scores the same queries in a
process of its own (`benchmarks/rival.py`), its factors fitted on the same 1,000 examples.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.report import Report, Row
from benchmarks.rival import Rival
from benchmarks.setting import Asked, parameters, small_network
from experiments.tasks import Task
from stagetrace import Chain, GaussNewton, Lanczos, Query, Shift, Solution, Stage
from stagetrace.curvature.subset import seeded_subset
from stagetrace.objectives import Classification
from stagetrace.progress import Silent
from stagetrace.results.parts import join
from stagetrace.solvers import solve
from stagetrace.stages.gradient import Gradient, batch_gradient
from stagetrace.stages.risk import Risk
from stagetrace.tracing.query_gradients import query_gradients
from stagetrace.tracing.score import Scorer

QUERIES = (1, 10, 100, 1000)
DAMPING, RTOL, RANKING = 0.01, 1e-2, 0.1
ALONE = 100
CURVATURE_SEED = 1
TOP = 100
EKFAC = "kronfluence, EK-FAC"


@final
@dataclass(frozen=True)
class Way:
    """How queries are traced: their gradients, and the solver."""

    gradients: Callable[[Risk], Gradient]
    solver: Lanczos


def one_by_one(risk: Risk) -> Gradient:
    """Every query's gradient by plain autograd."""
    found = [batch_gradient(risk, batch) for batch in risk.read([[i] for i in range(len(risk.examples))])]
    return Gradient(torch.cat([each.trained for each in found], dim=1), found[0].inherited)


WAYS = {
    "each by itself": Way(one_by_one, Lanczos(DAMPING, RTOL, filter=Shift, many="separate")),
    "together": Way(query_gradients, Lanczos(DAMPING, RTOL, filter=Shift)),
    "for a ranking": Way(query_gradients, Lanczos(DAMPING, RANKING, filter=Shift)),
    "shared basis": Way(query_gradients, Lanczos(DAMPING, RTOL, filter=Shift, many="shared basis")),
}


@final
@dataclass(frozen=True)
class Measured:
    """Seconds of the processor, and what came out: scores `[queries, examples]`."""

    gradients: float
    solving: float
    scoring: float
    solution: Solution
    scores: Tensor

    @property
    def total(self) -> float:
        return self.gradients + self.solving + self.scoring

    def row(self, queries: int, name: str, times: int = 1) -> Row:
        """times: how many times as many queries were asked for as were solved."""
        found = self.solution
        return {
            "queries": queries,
            "way": name if times == 1 else f"{name}, {times} times {queries // times}",
            "gradients, s": self.gradients * times,
            "solve, s": self.solving * times,
            "scores, s": self.scoring,
            "in all, s": (self.gradients + self.solving) * times + self.scoring,
            "products": found.products * times,
            "checks": found.checks * times,
            "worst residual": found.relative_residual,
            "peak MB so far": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def run(report: Report) -> None:
    """Every number of queries by every way, then how far their scores agree."""
    asked = report.asked
    task = asked.digits()
    model = small_network(asked, task)
    report.fields |= {"parameters": parameters(model), "examples": len(task.train.pixels), "damping": DAMPING}
    numbers = (1, 10, 20) if asked.quick else QUERIES
    costs, agreement = list[Row](), list[Row]()
    _ = traced(asked, model, task, 2, WAYS["together"])  # imports and first calls
    alone: dict[int, Measured] = {}
    for queries in numbers:
        found = {name: traced(asked, model, task, queries, way) for name, way in _ways(queries).items()}
        if "each by itself" in found:
            alone[queries] = found["each by itself"]
        else:
            costs.append(alone[ALONE].row(queries, "each by itself", queries // ALONE))
        costs += [each.row(queries, name) for name, each in found.items()]
        for name, each in found.items():
            if name != "together":
                agreement.append({"queries": queries, "with": name, **agrees(found["together"].scores, each.scores)})
        beside = None if asked.rival is None else Rival.of(asked, model, task, _drawn(asked, task), queries, DAMPING)
        if beside is not None:
            seconds = {"solve, s": beside.fit, "scores, s": beside.score, "in all, s": beside.fit + beside.score}
            costs.append({"queries": queries, "way": EKFAC, **seconds, "peak MB so far": beside.peak})
            agreement.append({"queries": queries, "with": EKFAC, **agrees(found["together"].scores, beside.scores)})
            if queries > 1:
                report.target(
                    f"{queries:,} queries, seconds over kronfluence's",
                    found["together"].total / seconds["in all, s"],
                    {100: 0.65, 1000: 0.95}.get(queries, 1.0),
                )
        report.fields[f"notes {queries}"] = list(found["together"].solution.notes)
    report.table("Tracing many queries", costs, "costs")
    report.table(
        f"Scores beside those of 'together': correlation, and how many of the {TOP} largest", agreement, "agree"
    )


def _ways(queries: int) -> dict[str, Way]:
    wanted = ["together"]
    if queries <= ALONE:
        wanted.insert(0, "each by itself")
    if queries > 1:
        wanted.append("for a ranking")
    if 1 < queries <= ALONE:
        wanted.append("shared basis")
    return {name: WAYS[name] for name in wanted}


def traced(asked: Asked, model: nn.Module, task: Task, queries: int, way: Way) -> Measured:
    """One run from the queries to the scores."""
    data = TensorDataset(task.train.pixels, task.train.labels)
    tests = TensorDataset(task.test.pixels[:queries], task.test.labels[:queries])
    bound = Chain(Stage("pretrain", model=model, objective=Classification(), data=data, batch_size=512)).last
    risk = Query(tests, reduction="none").risk(bound)
    times = [time.process_time()]
    gradient = way.gradients(risk)
    times.append(time.process_time())
    operator = GaussNewton(examples=asked.hessian_examples, seed=CURVATURE_SEED).operator(bound)
    solution = solve(operator, gradient.trained, way.solver)
    times.append(time.process_time())
    parts = Scorer.of(bound.risk, solution.value, parts=False, rows=queries).run(
        lambda number: None, lambda number, part: None, Silent()
    )
    scores = join("pretrain", parts).values
    times.append(time.process_time())
    gradients, solving, scoring = (after - before for before, after in pairwise(times))
    return Measured(gradients, solving, scoring, solution, scores)


def agrees(scores: Tensor, others: Tensor) -> Row:
    """Over the queries: median and least correlation, and median share of the largest scores in common."""
    one, two = (each.double() - each.double().mean(dim=1, keepdim=True) for each in (scores, others))
    correlation = (one * two).sum(dim=1) / (one.norm(dim=1) * two.norm(dim=1))
    k = min(TOP, scores.shape[1])
    pairs = zip(scores.topk(k).indices.tolist(), others.topk(k).indices.tolist(), strict=True)
    same = torch.tensor([len(set(mine) & set(theirs)) / k for mine, theirs in pairs])
    return {
        "median r": float(correlation.median()),
        "least r": float(correlation.min()),
        "median share": float(same.median()),
        "least share": float(same.min()),
    }


def _drawn(asked: Asked, task: Task) -> list[int]:
    """The examples that the curvature averages over."""
    return list(seeded_subset(len(task.train.pixels), asked.hessian_examples, CURVATURE_SEED))
