"""What looking how to multiply costs, and that it still sees what is wrong."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

from stagetrace import Stage
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.plan import Matrix, make_plan
from stagetrace.curvature.probe import BY_REVERSE
from stagetrace.errors import DifferentiationError
from stagetrace.objectives import NextToken
from stagetrace.preflight.live_tensors import LiveTensors
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.risk import Risk

transformers = pytest.importorskip("transformers")

WORDS, LENGTH = 50, 24

GRADIENTS: dict[Matrix, float] = {"Hessian": 5.2, "GaussNewton": 3.5}
"""Of the example that is looked at: the sums of the passes in `probed`, and the losses' own."""


def language_model() -> Risk:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    ids = torch.randint(WORDS, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    model = transformers.GPT2LMHeadModel(config)
    return BoundStage.of(Stage("only", model=model, objective=NextToken(), data=data), None).risk


@pytest.mark.parametrize("matrix", GRADIENTS)
def test_a_plan_takes_the_passes_that_are_counted_and_no_more(matrix: Matrix) -> None:
    risk = language_model()
    (one,) = risk.read([[0]])
    counts = list[int]()
    for work in (lambda: batch_gradient(risk, one), lambda: make_plan(risk, matrix, range(3), 3, 2**30)):
        with FlopCounterMode(display=False) as counter:
            work()
        counts.append(counter.get_total_flops())
    assert counts[1] <= GRADIENTS[matrix] * counts[0]


@pytest.mark.parametrize("matrix", GRADIENTS)
def test_a_plan_holds_no_more_than_a_product_and_its_vector(matrix: Matrix) -> None:
    risk = language_model()
    (one,) = risk.read([[0]])
    with LiveTensors() as product:
        _ = BY_REVERSE[matrix](risk, one)(torch.randn(risk.trained.size, 1))
    with LiveTensors() as plan:
        make_plan(risk, matrix, range(3), 3, 2**30)
    assert plan.peak <= 1.1 * product.peak


class Scaled(torch.autograd.Function):
    """A product whose derivatives are right, and whose second ones are there in one order only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        return grads[0] * scale, (grads[0] * x.detach()).sum((0, 1))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        del attention_mask
        return self.head(Scaled.apply(torch.tanh(self.words(input_ids)), self.scale))


def padded(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = pad_sequence(ids, batch_first=True, padding_value=-100)
    mask = pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
    return {"input_ids": pad_sequence(ids, batch_first=True), "labels": labels, "attention_mask": mask}


def test_texts_of_a_word_predict_nothing_and_are_not_what_is_looked_at() -> None:
    """The curvature of the shortest is zero, in which any derivative looks right; a longer one is multiplied."""
    torch.manual_seed(0)
    lengths = [1, 6, 7, 8, 9, 10, 11, 12]
    data = [{"input_ids": torch.randint(9, (length,)).tolist()} for length in lengths]
    bound = BoundStage.of(Stage("only", model=Words(), objective=NextToken(), data=data, collate=padded), None)
    with pytest.raises(DifferentiationError, match="the Hessian of an example is not symmetric"):
        MeanCurvature.planned(bound.risk, "Hessian", range(len(data)), 2**30)
