"""The parameters that a stage shares with the last one, and gradients over them, by explicit loops."""

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev

from tests import chains
from tests.chains import Additive, ChainCase
from tests.oracles import Point, losses, own_names, previous_names, query_losses, solved

RENAMED = chains.chain(
    "renamed twice",
    chains.stage("first", Additive(2, {"a": (0, 3), "head": (3, 5)}), "squared", n=13, seed=21, weight_decay=0.1),
    chains.stage(
        "second",
        Additive(2, {"b": (0, 3), "head": (3, 5)}),
        "squared",
        n=12,
        seed=22,
        weight_decay=0.1,
        link=chains.proximal(0.5, b="a"),
    ),
    chains.stage(
        "third", Additive(2, {"c": (0, 3), "head": (3, 5)}), "squared", n=11, seed=23, link=chains.frozen(c="b")
    ),
)
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@cache
def composed(case: ChainCase, position: int) -> dict[str, str]:
    """The last stage's parameters that it has by training or from before, with the stage's names of them."""
    last = case.stages[-1]
    names = {name: name for name in last.initial() if name in own_names(last) or name in previous_names(last)}
    for stage in reversed(case.stages[position + 1 :]):
        names = {name: previous_names(stage)[other] for name, other in names.items() if other in previous_names(stage)}
    return names


@cache
def shared(case: ChainCase, position: int) -> list[tuple[str, str]]:
    """Those of them that the stage trained: pairs of the last stage's name and the stage's."""
    own = own_names(case.stages[position])
    return [(name, other) for name, other in composed(case, position).items() if other in own]


def example_gradients(case: ChainCase, position: int, point: Point) -> list[Point]:
    stage = case.stages[position]
    return [
        grad(lambda point, i=i: losses(stage, point, stage.x[i : i + 1], stage.y[i : i + 1]).sum())(point)
        for i in range(len(stage.x))
    ]


def dots(case: ChainCase, position: int, at_last: list[Point], examples: list[Point]) -> Tensor:
    """`+ 1/n` times the dot product over the shared parameters, one by one, `[q, n]`."""
    rows = [
        [sum(float((here[other] * there[name]).sum()) for name, other in shared(case, position)) for here in examples]
        for there in at_last
    ]
    return torch.tensor(rows, dtype=torch.float64) / len(examples)


def reduced(rows: Tensor, reduction: str) -> Tensor:
    return {"mean": rows.sum(dim=0) / len(rows), "sum": rows.sum(dim=0), "none": rows}[reduction]


@cache
def query_gradients(case: ChainCase) -> list[Point]:
    by_name = jacrev(lambda point: query_losses(case, point))(solved(case)[-1])
    return [{name: rows[q] for name, rows in by_name.items()} for q in range(len(case.query_x))]
