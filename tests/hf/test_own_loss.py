"""A loss of the model's own that the ready-made one is not is found wherever in the data set it shows."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from stagetrace import hf
from stagetrace.errors import DescriptionError
from tests.hf import tiny

ANOTHER = r"the model computes another loss than .*give objective="


def weighing(kind: str, labels: int, weigh: Any) -> Any:
    """A model of this kind whose own loss is `weigh(logits, labels)`."""
    parent: Any = getattr(transformers, f"BertFor{kind}")

    class Weighing(parent):
        def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **named: Any) -> Any:
            out: Any = super().forward(input_ids, attention_mask=attention_mask, **named)
            if labels is not None:
                out.loss = weigh(out.logits, labels)
            return out

    Weighing.__name__ = f"WeighingBertFor{kind}"
    torch.manual_seed(0)
    model = Weighing(tiny.config("bert", num_labels=labels))
    tiny.stir(model, 0.4)
    return model.eval()


def of_classes(weights: list[float], dtype: torch.dtype = torch.float32) -> Any:
    weight = torch.tensor(weights, dtype=dtype)
    made = weighing("SequenceClassification", 3, lambda logits, y: nn.functional.cross_entropy(logits, y, weight))
    return made.to(dtype)


def rows_of(labels: list[int]) -> list[dict[str, Any]]:
    return [{"input_ids": [2, 5 + i % 9, 6 + i % 7, 3], "labels": label} for i, label in enumerate(labels)]


@pytest.mark.parametrize("count", [2, 10])
def test_weights_of_a_class_in_the_middle_of_the_rows_are_seen(count: int):
    rows = rows_of([0] * count + [1] * count + [2] * count)
    with pytest.raises(DescriptionError, match=ANOTHER):
        hf.stage("s", of_classes([1.0, 9.0, 1.0]), rows)
    hf.stage("s", of_classes([2.0, 2.0, 2.0]), rows)


def test_small_differences_are_seen_in_float64():
    rows = rows_of([0, 1, 2])
    with pytest.raises(DescriptionError, match=ANOTHER):
        hf.stage("s", of_classes([1.0, 1.001, 1.0], torch.float64), rows)
    hf.stage("s", of_classes([1.0, 1.0, 1.0], torch.float64), rows)


def test_weights_of_tags_in_the_middle_of_the_rows_are_seen():
    weight = torch.tensor([1.0, 9.0, 1.0])
    model = weighing(
        "TokenClassification", 3, lambda logits, y: nn.functional.cross_entropy(logits.transpose(1, 2), y, weight)
    )
    tags = [0] * 6 + [1] * 6 + [2] * 6
    rows = [{"input_ids": [2, 5 + i % 9, 6, 3], "labels": [-100, t, t, -100]} for i, t in enumerate(tags)]
    with pytest.raises(DescriptionError, match=ANOTHER):
        hf.stage("s", model, rows)


def experts(coefficient: float, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    settings = transformers.MixtralConfig(
        vocab_size=tiny.SIZE, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, output_router_logits=True, router_aux_loss_coef=coefficient,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    model: Any = transformers.MixtralForCausalLM(settings)
    return model.to(dtype).eval()


TOKENS = [{"input_ids": [5, 6, 7, 8]}, {"input_ids": [9, 5, 6]}]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_small_term_for_the_balance_of_experts_is_named(dtype: torch.dtype):
    with pytest.raises(DescriptionError, match=r"experts' balance .*router_aux_loss_coef = 1e-05.*give objective="):
        hf.stage("s", experts(1e-5, dtype), TOKENS)
    without = experts(1e-5, dtype)
    without.config.output_router_logits = False
    hf.stage("s", without, TOKENS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_small_term_without_a_known_name_is_seen(dtype: torch.dtype):
    model = tiny.model("LlamaForCausalLM").to(dtype)
    hf.stage("s", model, TOKENS)
    plain = model.loss_function
    model.loss_function = lambda logits, labels, **named: plain(logits=logits, labels=labels, **named) + 0.002
    with pytest.raises(DescriptionError, match=ANOTHER):
        hf.stage("s", model, TOKENS)
