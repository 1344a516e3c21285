"""Activation checkpointing: numbers are those without it, however the user's model was left, and memory is saved."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from stagetrace import Chain, GaussNewton, Hessian, Stage
from stagetrace.curvature.gauss_newton import OutputGraph, gauss_newton_retained_graph
from stagetrace.curvature.memory import graph_bytes
from stagetrace.curvature.plan import make_plan
from stagetrace.objectives import MaskedToken, NextToken
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import batch_gradient
from stagetrace.tracing.score import Scorer

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")

WORDS, LENGTH, SEQUENCES = 20, 6, 3


class Blocks(nn.Module):
    """Two blocks, the second with activations that are computed anew in the backward pass, if so."""

    def __init__(self, anew: bool | None) -> None:
        super().__init__()
        self.anew = anew
        self.words = nn.Embedding(WORDS, 4)
        self.first, self.second = (nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(4, WORDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.first(self.words(input_ids))
        return self.head(self.second(x) if self.anew is None else checkpoint(self.second, x, use_reentrant=self.anew))


COMMON: dict[str, Any] = {"vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 0}
GPT2: dict[str, Any] = {"n_positions": LENGTH, "n_embd": 8, "n_layer": 2, "n_head": 2}
OTHERS: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}

MODELS: dict[str, Callable[[], nn.Module]] = {
    # dropout is on in training mode: a block that drops its activations must not turn it on
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(**COMMON, **GPT2)),
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, **OTHERS, max_position_embeddings=LENGTH)),
    "BERT": lambda: BertForMaskedLM(BertConfig(**COMMON, **OTHERS, max_position_embeddings=LENGTH)),
}


def make(kind: str, anew: bool | None, train: bool = False) -> nn.Module:
    """anew: None for a plain model, else whether its blocks are computed anew with reentry."""
    torch.manual_seed(0)
    if kind == "torch":
        return Blocks(anew).train(train)
    model: Any = MODELS[kind]().train(train)
    if anew is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": anew})
    return model


def bound_of(model: nn.Module, **settings: Any) -> BoundStage:
    ids = torch.randint(WORDS, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in ids]
    objective = MaskedToken() if type(model).__name__.startswith("Bert") else NextToken()
    return Chain(Stage("lm", model=model, objective=objective, data=data, **settings))["lm"]


def numbers(model: nn.Module) -> dict[str, Tensor]:
    """Of the model as it is, and at other values: there the user's own parameters would give another gradient."""
    stage = bound_of(model.double())
    (batch,) = stage.risk.read([range(SEQUENCES)])
    moved = stage.risk.at({name: 1.5 * value for name, value in stage.trained_values.items()})
    return {
        "Hessian": product(Hessian(), stage),
        "GaussNewton": product(GaussNewton(), stage),
        "kept forward graph": gauss_newton_retained_graph(moved, batch)(along(stage)),
        "scores": scores(stage),
        "gradient elsewhere": batch_gradient(moved, batch).trained,
    }


def along(stage: BoundStage) -> Tensor:
    return torch.linspace(-1, 1, stage.trained.size, dtype=torch.float64).unsqueeze(1)


def product(curvature: Any, stage: BoundStage) -> Tensor:
    return curvature.operator(stage) @ along(stage)


def scores(stage: BoundStage) -> Tensor:
    scorer = Scorer.of(stage.risk, along(stage), parts=False, rows=None)
    return scorer.part(range(SEQUENCES), lambda *_, **__: None).values


WAYS = [(False, False), (True, True), (False, True), (True, False)]
QUICK = {"torch": WAYS[:2], "GPT-2": WAYS[:2], "Llama": WAYS[:1], "BERT": WAYS[1:2]}
"""Which ways of each kind are not slow."""


@pytest.mark.parametrize(
    ("kind", "reentrant", "train"),
    [
        pytest.param(kind, *way, marks=() if way in QUICK[kind] else pytest.mark.slow)
        for kind in ("torch", *MODELS)
        for way in WAYS
    ],
)
def test_checkpointed_models_have_the_numbers_of_plain_ones(kind: str, reentrant: bool, train: bool) -> None:
    expected, found = numbers(make(kind, None)), numbers(make(kind, reentrant, train))
    for name, each in found.items():
        assert bool(expected[name].any())
        torch.testing.assert_close(each, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_activations_are_dropped_in_eval_mode_and_the_plan_knows(kind: str) -> None:
    plain, anew = (bound_of(make(kind, how)).risk for how in (None, False))
    (batch,) = plain.read([range(SEQUENCES)])
    held, dropped = (graph_bytes(r, batch, partial(OutputGraph, r, batch))[1] for r in (plain, anew))
    assert dropped < 0.5 * held
    memory = 2 * dropped  # the dropped graph fits, the one of reverse mode does not
    plans = [make_plan(risk, "GaussNewton", range(SEQUENCES), SEQUENCES, memory) for risk in (plain, anew)]
    assert [plan.way for plan in plans] == ["recomputed forward", "retained graph"]
    assert plans[1].traced_from is None  # a trace would hold the activations
    chunk = plans[1].chunk_examples  # all of its activations may be there while a product is made
    assert chunk == 1 or chunk * held / SEQUENCES <= memory
    assert plans[1].gradients_per_product > plans[1].without_recomputing().gradients_per_product


def test_a_block_computed_anew_rounds_its_products_too() -> None:
    plain, anew = (bound_of(make("GPT-2", how), precision="bf16").risk for how in (None, False))
    (batch,) = plain.read([range(SEQUENCES)])
    torch.testing.assert_close(batch_gradient(anew, batch).trained, batch_gradient(plain, batch).trained)
