"""Losses as they were trained, on a GPU: weighted examples, tokens one by one, preferences with their reference."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace import Chain, Frozen, Hessian, Lanczos, Proximal, Query, Stage, Trace, trace
from stagetrace.objectives import DPO, NextToken, Weights
from tests import jobs
from tests.objectives import preferences as of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use"),
    pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning"),
]

GPU = "cuda"
SOLVED: dict[str, Any] = {"curvature": Hessian(), "solver": Lanczos(damping=0.1, rtol=1e-10)}


def weighted(device: str) -> tuple[Chain, Query]:
    """Numbers for one stage, and a weight for each of the sources of the other."""
    pretrain, finetune = jobs.chain(Frozen("embedding"), sizes=(37, 23)).stages
    counts = 1.0 + torch.arange(37) % 3
    by_class = Weights({0: 1.0, 1: 5.0, 2: 0.5}, sources=[place % 3 for place in range(23)])
    stages = replace(pretrain, weights=counts), replace(finetune, weights=by_class)
    for stage in stages:
        stage.model.to(device)
    return Chain(*stages), Query(jobs.examples(12, 9), batch_size=4)


def preferences(device: str) -> tuple[Chain, Query]:
    """A language model and its DPO stage, whose reference it is: the derivative goes through both."""
    drawn = torch.Generator().manual_seed(0)
    tables = [0.3 * torch.randn(of.SIZE, of.SIZE, dtype=torch.float64, generator=drawn) for _ in range(2)]
    told: dict[str, Any] = {"weight_decay": of.DECAY}
    first = Stage("sft", model=of.Table(tables[0]).to(device), objective=NextToken(), data=of.texts(9, 1), **told)
    link = Proximal({"table": "table"}, alpha=of.ALPHA)
    loss: Any = DPO(of.BETA, reference=first)
    second = Stage("dpo", model=of.Table(tables[1]).to(device), objective=loss, data=of.pairs(8, 2), link=link, **told)
    return Chain(first, second), Query(of.texts(2, 3), objective=NextToken())


def same(there: Tensor, here: Tensor) -> None:
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-7 * float(here.abs().max()))


@pytest.mark.parametrize("case", [weighted, preferences], ids=lambda case: case.__name__)
def test_scores_are_those_of_the_cpu(case: Any):
    found: list[Trace] = []
    for device in (GPU, "cpu"):
        chain, query = case(device)
        found.append(trace(chain, query, **SOLVED))
    for name in found[1]:
        same(found[0][name].values, found[1][name].values)


def test_scores_of_tokens_are_those_of_the_cpu_and_sum_to_the_example_s():
    there, here = (trace(*preferences(device), of="sft", tokens=True, **SOLVED) for device in (GPU, "cpu"))
    for index in range(9):
        tokens = there.tokens["sft"][index]
        same(tokens.values, here.tokens["sft"][index].values)
        assert float(tokens.values.sum()) == pytest.approx(float(there["sft"].values[index]), rel=1e-5, abs=1e-9)
