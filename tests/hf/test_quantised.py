"""Quantised weights below adapters: constants, whose scores are those of the same numbers in full precision."""

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stagetrace import Chain, Frozen, Hessian, Lanczos, hf, trace
from stagetrace.errors import DescriptionError
from tests.hf import tiny
from tests.hf.test_adapters import ROWS, stirred
from tests.hf.test_chained import bare

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # peft on transformers 5
    pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning"),  # nothing here was trained
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


class Packed(nn.Linear):
    """Int8 weights and a scale for each row; there is no parameter but the bias."""

    @staticmethod
    def of(whole: nn.Linear) -> "Packed":
        layer = Packed.__new__(Packed)
        vars(layer).update(copy.deepcopy(vars(whole)))
        values = whole.weight.detach()
        del layer._parameters["weight"]
        scale = values.abs().amax(dim=1, keepdim=True) / 127
        layer.register_buffer("scale", scale)
        layer.register_buffer("weight", (values / scale).round().to(torch.int8))
        return layer

    def dequantised(self) -> Tensor:
        return self.weight.to(self.scale.dtype) * self.scale  # pyright: ignore[reportArgumentType,reportCallIssue]

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.dequantised(), self.bias)


def classifier() -> Any:
    return tiny.model("BertForSequenceClassification").double().requires_grad_(False)


def quantised() -> Any:
    model = classifier()
    inner = model.bert.encoder.layer[0].attention.self
    inner.query, inner.value = Packed.of(inner.query), Packed.of(inner.value)
    return model


def dequantised(model: Any) -> Any:
    """The same numbers as ordinary parameters."""
    whole, inner = classifier(), model.bert.encoder.layer[0].attention.self
    with torch.no_grad():
        for name in ("query", "value"):
            getattr(whole.bert.encoder.layer[0].attention.self, name).weight.copy_(getattr(inner, name).dequantised())
    return whole


def adapted(base: Any) -> Any:
    torch.manual_seed(0)
    model = stirred(peft.get_peft_model(base, bare()))
    with torch.no_grad():  # made in single precision above integers
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter.half())
    return model


def test_scores_are_those_of_the_dequantised_weights():
    found: list[Tensor] = []
    for base in (quantised(), dequantised(quantised())):
        stage = hf.stage("adapters", adapted(base), ROWS, weight_decay=0.7)
        solver = Lanczos(damping=1.0, rtol=1e-10)
        result = trace(Chain(stage), hf.query(ROWS[:1], stage=stage), curvature=Hessian(), solver=solver)
        found.append(result["adapters"].values)
    assert bool((found[0] != 0).all())
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-10)


def test_a_stage_that_trained_the_weights_cannot_be_traced_through_them():
    first = hf.stage("first", classifier().requires_grad_(True), ROWS)
    with pytest.raises(
        DescriptionError, match=r"stage 's': 'encoder.*query.weight' and 1 more are quantised.*leave after= out"
    ):
        hf.stage("s", adapted(quantised()), ROWS, after=first)


def test_adapters_merged_out_of_a_quantised_base_are_refused():
    first = hf.stage("first", adapted(quantised()), ROWS)
    with pytest.raises(DescriptionError, match=r"is in full precision here, and was quantised in the stage before"):
        hf.stage("s", classifier().requires_grad_(True), ROWS, after=first)


def test_integers_as_parameters_are_told_too():
    """bitsandbytes keeps its weights so."""

    class Whole(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return F.linear(input, self.weight.to(input.dtype) / 100, self.bias)

    def packed() -> Any:
        model = classifier()
        for name in ("query", "value"):
            layer = getattr(model.bert.encoder.layer[0].attention.self, name)
            layer.__class__ = Whole
            layer.weight = nn.Parameter((layer.weight * 100).to(torch.int8), requires_grad=False)
        return model

    with pytest.raises(
        DescriptionError,
        match=r"weights are quantised.*from_pretrained\(folder, dtype=.*\(Adapters on a quantised base can be traced",
    ):
        hf.stage("s", packed(), ROWS)
    first = hf.stage("first", adapted(packed()), ROWS)
    second = hf.stage("second", adapted(packed()), ROWS, after=first)
    assert isinstance(second.link, Frozen)
    assert not any(name.endswith("query.base_layer.weight") for name in second.link.pairs)
    before = hf.stage("before", classifier().requires_grad_(True), ROWS)
    with pytest.raises(DescriptionError, match="cannot be traced through them"):
        hf.stage("s", adapted(packed()), ROWS, after=before)
