"""Rounded products and blocks computed anew on a GPU, whose backward passes run in threads of their own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace import Stage
from stagetrace.curvature.chunk import hessian_retained_graph
from stagetrace.curvature.gauss_newton import gauss_newton_by_reverse, gauss_newton_retained_graph
from stagetrace.objectives import NextToken
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.risk import Risk
from stagetrace.tracing.contract import forward_mode

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning"),
]

WORDS, LENGTH = 60, 300


def risk_of(*, anew: bool = False, precision: Any = None) -> Risk:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LENGTH,
    )
    model = transformers.LlamaForCausalLM(config).cuda()
    if anew:
        model.gradient_checkpointing_enable()
    ids = torch.randint(WORDS, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    stage = Stage("only", model=model, objective=NextToken(), data=data, precision=precision)
    return BoundStage.of(stage, None).risk


def numbers(risk: Risk) -> dict[str, Tensor]:
    (batch,) = risk.read([[0, 1]])
    moved = risk.at({name: 1.1 * value for name, value in risk.trained_values.items()})
    v = torch.randn(risk.trained.size, 1, generator=torch.Generator().manual_seed(1)).cuda()
    ways = (hessian_retained_graph, gauss_newton_retained_graph, gauss_newton_by_reverse)
    found = {way.__name__: way(moved, batch)(v) for way in ways}
    slope = batch_gradient(moved, batch).trained
    return found | {"gradient": slope, "scores": forward_mode(moved, batch, v)[1] / slope.norm()}


@pytest.mark.parametrize("anew", [False, True])
def test_rounded_products_are_near_exact_ones(anew: bool):
    right, found = numbers(risk_of()), numbers(risk_of(anew=anew, precision="bf16"))
    for name, each in found.items():
        size = 1.0 if name == "scores" else float(right[name].norm())
        assert each.dtype == torch.float32
        assert 1e-5 * size < float((each - right[name]).norm()) < 0.03 * size, name


def test_blocks_computed_anew_give_the_same_numbers_in_less_memory():
    right, found = numbers(risk_of()), numbers(risk_of(anew=True))
    for name, each in found.items():
        torch.testing.assert_close(each, right[name], rtol=1e-3, atol=1e-3 * float(right[name].abs().max()))
    peaks = list[int]()
    for risk in (risk_of(), risk_of(anew=True)):
        (batch,) = risk.read([[0, 1]])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        batch_gradient(risk, batch)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.7 * peaks[0]
