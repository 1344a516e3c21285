"""DPO and reward losses: the formulas, the reference as a part of the derivative, and what is refused."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace import Chain, GaussNewton, Hessian, Lanczos, Proximal, Query, Stage, trace
from stagetrace.errors import BatchError, DataError, DescriptionError, StagetraceWarning
from stagetrace.objectives import DPO, NextToken, Reward
from stagetrace.stages.coverage import notices_at
from tests.objectives import preferences as of

pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning")

TEXTS, PAIRS, ASKED = of.texts(9, 1), of.pairs(8, 2), of.texts(2, 3)


def chain(tables: tuple[Tensor, Tensor], objective: Any, pairs: Any = PAIRS, **settings: Any) -> Chain:
    first = Stage("sft", model=of.Table(tables[0]), objective=NextToken(), data=TEXTS, weight_decay=of.DECAY)
    loss = objective(first) if callable(objective) else objective
    link = Proximal({"table": "table"}, alpha=of.ALPHA)
    second = Stage(
        "dpo", model=of.Table(tables[1]), objective=loss, data=pairs, link=link, weight_decay=of.DECAY, **settings
    )
    return Chain(first, second)


def again(tables: tuple[Tensor, Tensor], place: int, extra: float, *, follows: bool) -> Tensor:
    """The DPO table after both trainings, with one example of `extra` more weight in the loss of the first."""
    weights = torch.ones(len(TEXTS), dtype=torch.float64)
    weights[place] += extra * len(TEXTS)
    first = of.sft(TEXTS, weights, tables[0])
    return of.dpo(PAIRS, first, first if follows else tables[0], tables[1])


def asked(table: Tensor) -> Tensor:
    return torch.stack([of.sft_loss(table, row) for row in ASKED]).mean()


@pytest.fixture(scope="module")
def tables() -> tuple[Tensor, Tensor]:
    first = of.sft(TEXTS, torch.ones(len(TEXTS), dtype=torch.float64))
    return first, of.dpo(PAIRS, first, first)


@pytest.mark.parametrize("follows", [True, False])
def test_both_stages_solved_again_with_an_example_of_another_weight(follows: bool, tables: tuple[Tensor, Tensor]):
    """Where the reference is the stage before, the derivative goes through it; else it is held, and that is said."""
    columns = [{**row, **_reference(tables[0], row)} for row in PAIRS]
    made = chain(tables, lambda first: DPO(of.BETA, reference=first)) if follows else chain(tables, DPO(of.BETA), columns)
    said = [text for text in notices_at(made["dpo"]) if "held fixed" in text]
    assert bool(said) is not follows
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*held fixed", category=StagetraceWarning)
        query = Query(ASKED, objective=NextToken())
        found = trace(made, query, curvature=Hessian(), solver=Lanczos(damping=0.0, rtol=1e-12))["sft"].values
    for place in (0, 4):
        more, less = (asked(again(tables, place, extra, follows=follows)) for extra in (1e-4, -1e-4))
        assert float(found[place]) == pytest.approx(float(more - less) / 2e-4, rel=1e-6)


def _reference(table: Tensor, row: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"ref_{side}_logps": of.logp(table, row, side) for side in ("chosen", "rejected")}
