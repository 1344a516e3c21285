"""This library by the rivals' protocol: whole calls of `trace`, checks, plans and the queries' gradients in them.

With torchrun before it, the ranks share the examples; the seconds are those of the rank that spent most.
"""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.rivals.given import Given
from benchmarks.rivals.process import Found, LeftOut, Method, Spent, command
from stagetrace import (
    EKFAC,
    Chain,
    Direct,
    Frozen,
    GaussNewton,
    Hessian,
    Lanczos,
    Link,
    Proximal,
    Query,
    Shift,
    Stage,
    trace,
)
from stagetrace.curvature.operations import Operations, counted_operations
from stagetrace.curvature.subset import seeded_subset
from stagetrace.objectives import Classification, NextToken
from stagetrace.parallel import started, world
from stagetrace.progress import Silent
from stagetrace.results.parts import join
from stagetrace.solvers.system import Equation
from stagetrace.stages.bound import BoundStage
from stagetrace.tracing.score import Scorer

SQUARED = 1e-3
"""Damping of the squared Hessian."""


def traced(chosen: Callable[[Given], dict[str, Any]], approximates: str | None = None) -> Method:
    """One call of `trace` by some curvature and solver."""

    def run(given: Given, spent: Spent) -> Found:
        with started(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            how = chosen(given)
            with spent.on("all"):
                result = trace(chain_of(given), query_of(given), **how)
            spent.phases["all"] = max(world().gather(spent.phases["all"]))
            solution = result.solutions["only"]
            scores = result["only"].values
            assert solution is not None
            statuses = f"residual {solution.relative_residual:.1e}, {solution.status.name.lower()}"
            return Found(
                scores[None] if scores.ndim == 1 else scores,
                given.parameters,
                None if approximates else _written(solution.system, how.get("curvature")),
                f"{approximates} + {given.settings.damping:g}" if approximates else None,
                None if approximates else solution.value.reshape(given.parameters, -1),
                solution.products + solution.checks,
                () if approximates else (statuses,),
            )

    return run


def chain_of(given: Given) -> Chain:
    tokens = given.settings.kind == "tokens"
    objective = NextToken() if tokens else Classification()
    batch = min(given.settings.batch, 512)
    return Chain(Stage("only", model=given.model, objective=objective, data=given.train, batch_size=batch))


def query_of(given: Given) -> Query:
    return Query(given.tests, reduction="mean" if given.settings.mean else "none")


def scoring(given: Given, spent: Spent) -> Found:
    """The scores of one solution, and how many forward passes over the same examples they take; least of three."""
    bound = chain_of(given).last
    adjoint = torch.randn(bound.trained.size, generator=torch.Generator().manual_seed(given.settings.seed))
    model, settings = given.model, given.settings
    forward, each = list[float](), list[float]()
    values = torch.empty(0)
    for _ in range(3):
        before = time.process_time()
        with torch.no_grad():
            for inputs in given.train.tensors[0].split(min(settings.batch, 512)):
                model(inputs)
        between = time.process_time()
        scorer = Scorer.of(bound.risk, adjoint[:, None], parts=False, rows=None)
        values = join("only", scorer.run(lambda n: None, lambda n, part: None, Silent())).values
        forward.append(between - before)
        each.append(time.process_time() - between)
    spent.phases["score"] = min(each)
    passes = (f"{min(each) / min(forward):.3g} forward passes", f"{_counted(bound, adjoint):.3g} by counted operations")
    return Found(values[None], given.parameters, notes=passes)


def _counted(bound: BoundStage, adjoint: torch.Tensor) -> float:
    """Operations of matrix products and convolutions: of scoring a batch over those of its forward pass."""
    batch = next(iter(bound.risk.read(bound.risk.examples.batch_indices()[:1])))
    contract = Scorer.of(bound.risk, adjoint[:, None], parts=False, rows=None).contract
    with Operations() as scored:
        contract(batch)
    return scored.total / counted_operations(bound.risk, batch)


def two_stages(link: Link) -> Method:
    """Scores of the pretraining examples for the fine-tuned model's query, by the defaults."""

    def run(given: Given, spent: Spent) -> Found:
        second = Given.read(Path(given.settings.config["finetune"]))
        stages = [Stage("pretrain", model=given.model, objective=Classification(), data=given.train, batch_size=512)]
        tuned = second.model
        stages.append(
            Stage("finetune", model=tuned, objective=Classification(), data=second.train, batch_size=512, link=link)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with spent.on("all"):
                result = trace(Chain(*stages), query_of(second))
        solutions = {name: each for name, each in result.solutions.items() if each is not None}
        notes = [f"{name}: {each.system}, residual {each.relative_residual:.1e}" for name, each in solutions.items()]
        products = sum(each.products + each.checks for each in solutions.values())
        return Found(result["pretrain"].values[None], given.parameters, products=products, notes=tuple(notes))

    return run


def _same_examples(given: Given, curvature: Callable[..., Any]) -> Any:
    settings = given.settings
    if tuple(seeded_subset(len(given.train), len(given.chosen), settings.drawn_by)) != given.chosen:
        raise LeftOut("the curvature's examples are not those that its seed draws")
    return curvature(examples=len(given.chosen), seed=settings.drawn_by)


def default(given: Given) -> dict[str, Any]:
    del given
    return {}


def gauss_newton(rtol: float | None = None, many: Any = "auto") -> Callable[[Given], dict[str, Any]]:
    def chosen(given: Given) -> dict[str, Any]:
        settings = given.settings
        solver = Lanczos(settings.damping, settings.rtol if rtol is None else rtol, filter=Shift, many=many)
        return {"curvature": _same_examples(given, GaussNewton), "solver": solver}

    return chosen


def hessian(squared: bool) -> Callable[[Given], dict[str, Any]]:
    def chosen(given: Given) -> dict[str, Any]:
        settings = given.settings
        solver = Lanczos(settings.damping, settings.rtol, max_steps=settings.most, filter=Shift)
        if squared:
            solver = Lanczos(SQUARED, settings.rtol)
        return {"curvature": _same_examples(given, Hessian), "solver": solver}

    return chosen


def ekfac(given: Given) -> dict[str, Any]:
    return {"curvature": _same_examples(given, EKFAC), "solver": Direct(given.settings.damping, Shift)}


def _written(system: Any, asked: Any) -> str | None:
    """As `G + 0.01`; an equation's "H" is the curvature that was asked for."""
    if not isinstance(system, Equation):
        return None
    record = system.record()
    squared = "^2" if record["filter"] == "Tikhonov" else ""
    matrix = "G" if isinstance(asked, GaussNewton) else record["matrix"]
    return f"{matrix}{squared} + {record['damping']:g}"


METHODS: dict[str, Method] = {
    "default": traced(default),
    "Gauss-Newton": traced(gauss_newton()),
    "Gauss-Newton, 1e-2": traced(gauss_newton(1e-2)),
    "Gauss-Newton, 0.1": traced(gauss_newton(0.1)),
    "Hessian": traced(hessian(squared=False)),
    "Hessian squared": traced(hessian(squared=True)),
    "EKFAC": traced(ekfac, approximates="G"),
    "score one vector": scoring,
    "Frozen": two_stages(Frozen({"embedding": "embedding"})),
    "Proximal": two_stages(Proximal({"embedding": "embedding"})),
}

if __name__ == "__main__":
    command("stagetrace", METHODS)
