"""Activation checkpointing: numbers are those without it, however the user's model was left."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

from stagetrace import Chain, GaussNewton, Hessian, Stage
from stagetrace.objectives import NextToken
from stagetrace.stages.bound import BoundStage
from stagetrace.tracing.score import Scorer

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")

WORDS, LENGTH, SEQUENCES = 20, 6, 3


class Blocks(nn.Module):
    """Two blocks, the second with activations that are computed anew in the backward pass, if so."""

    def __init__(self, *, anew: bool) -> None:
        super().__init__()
        self.anew = anew
        self.words = nn.Embedding(WORDS, 4)
        self.first, self.second = (nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(4, WORDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.first(self.words(input_ids))
        return self.head(checkpoint(self.second, x, use_reentrant=False) if self.anew else self.second(x))


def gpt2(*, anew: bool, train: bool = False) -> nn.Module:
    config = GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).train(train)
    if anew:
        model.gradient_checkpointing_enable()
    return model


def numbers(model: nn.Module) -> dict[str, Tensor]:
    ids = torch.randint(WORDS, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in ids]
    stage = Chain(Stage("lm", model=model.double(), objective=NextToken(), data=data))["lm"]
    return {"Hessian": product(Hessian(), stage), "GaussNewton": product(GaussNewton(), stage), "scores": scores(stage)}


def along(stage: BoundStage) -> Tensor:
    return torch.linspace(-1, 1, stage.trained.size, dtype=torch.float64).unsqueeze(1)


def product(curvature: Any, stage: BoundStage) -> Tensor:
    return curvature.operator(stage) @ along(stage)


def scores(stage: BoundStage) -> Tensor:
    scorer = Scorer.of(stage.risk, along(stage), parts=False, rows=None)
    return scorer.part(range(SEQUENCES), lambda *_, **__: None).values


def make(kind: str, *, anew: bool) -> nn.Module:
    torch.manual_seed(0)
    return Blocks(anew=anew) if kind == "torch" else gpt2(anew=anew, train=kind == "transformers, in train mode")


@pytest.mark.parametrize("kind", ["torch", "transformers", "transformers, in train mode"])
def test_checkpointed_models_have_the_numbers_of_plain_ones(kind: str) -> None:
    expected, found = (numbers(make(kind, anew=anew)) for anew in (False, True))
    for name, each in found.items():
        assert bool(expected[name].any())
        torch.testing.assert_close(each, expected[name], rtol=1e-9, atol=1e-12)
