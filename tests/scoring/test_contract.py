"""Per-example gradients times adjoints: four ways, one truth, for every kind of layer."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace import Stage
from stagetrace.errors import DataError, DifferentiationError
from stagetrace.objectives import Classification, MaskedToken, NextToken
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.tracing import contract as contracting
from stagetrace.tracing.contract import choose, contract, forward_mode, layer_by_layer, one_by_one, per_example
from tests.curvature import specimens
from tests.curvature.specimens import (
    ATTENTION,
    BACKWARDS,
    BACKWARDS_BATCHED,
    BAG,
    ENCODER,
    GRU,
    LSTM,
    MLP,
    SPECIMENS,
    N,
    Specimen,
)
from tests.objectives import tiny

WAYS: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {
    "forward mode": forward_mode,
    "layer by layer": layer_by_layer,
    "per-example gradients": per_example,
    "one example at a time": one_by_one,
}
by_way = pytest.mark.parametrize("way", WAYS)
SINGLE = 500 * torch.finfo(torch.float32).eps  # some layers of roundings, relatively to the gradients
PRECISIONS = ((torch.float64, 1e-10), (torch.float32, SINGLE))


def whole(risk: Risk) -> Batch:
    return next(iter(risk.read([range(len(risk.examples))])))


def adjoints(size: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, columns, dtype=dtype, generator=torch.Generator().manual_seed(7))


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relatively to the largest entry."""
    assert found.shape == expected.shape
    gap = float((found.double() - expected).abs().max())
    assert gap <= tolerance * float(expected.abs().max()), gap


def named(*some: Specimen) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("specimen", some, ids=lambda specimen: specimen.name)


# Against a loop of plain autograd


@named(*SPECIMENS)
@by_way
def test_contractions_equal_a_loop_of_autograd(specimen: Specimen, way: Any):
    gradients = specimens.example_gradients(specimen)
    for dtype, tolerance in PRECISIONS:
        risk = specimen.risk(dtype)
        batch = whole(risk)
        if way == "layer by layer" and specimen in (LSTM, GRU, ATTENTION, ENCODER):
            with pytest.raises(DifferentiationError, match=r"no gradients layer by layer: '.*' is not tapped: "):
                layer_by_layer(risk, batch, adjoints(risk.trained.size, 1, dtype))
            return
        if way == "per-example gradients" and specimen in (LSTM, GRU):
            assert contracting._failure(way, risk, batch, 1)  # recurrent layers have no batching rule
            return
        for columns in (1, 2, 9):
            lambdas = adjoints(risk.trained.size, columns, dtype)
            losses, dots = WAYS[way](risk, batch, lambdas)
            assert dots.dtype == dtype
            assert losses.shape == (N,)
            assert not dots.requires_grad
            assert not losses.requires_grad
            assert_close(dots, gradients @ lambdas.double(), tolerance)
        _, expected, at = specimens.functions_of(specimen)
        with specimens.plain_kernels():
            assert_close(losses, expected(at).detach(), tolerance)


class Language:
    """A model from `transformers` on sentences of different lengths, in padded batches."""

    def __init__(self, make: Callable[[], nn.Module], objective: Any, collate: Callable[..., Any]) -> None:
        self.make, self.objective, self.collate = make, objective, collate
        self.data = [{"tokens": sentence} for sentence in tiny.SENTENCES]
        if isinstance(objective, Classification):
            self.data = [{**row, "label": label} for row, label in zip(self.data, (0, 2, 1, 1, 0), strict=True)]

    def risk(self, dtype: torch.dtype) -> Risk:
        model = self.model().to(dtype)
        stage = Stage("only", model=model, objective=self.objective, data=self.data, collate=self.collate)
        return BoundStage.of(stage, None).risk

    def model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(8)
            return self.make()

    def loss(self, model: nn.Module, sentence: list[int], row: dict[str, Any]) -> Tensor:
        """The loss of one sentence without any padding, written out."""
        tokens = torch.tensor([sentence])
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        if isinstance(self.objective, Classification):
            return F.cross_entropy(logits, torch.tensor(row["label"]))
        if isinstance(self.objective, NextToken):
            return F.cross_entropy(logits[:-1], tokens[0, 1:])
        return F.cross_entropy(logits[::2], tokens[0, ::2])

    def gradients(self) -> Tensor:
        model, rows = copy.deepcopy(self.model()).double().eval(), []
        with specimens.plain_kernels():
            for sentence, row in zip(tiny.SENTENCES, self.data, strict=True):
                found = torch.autograd.grad(
                    self.loss(model, sentence, row),
                    list(model.parameters()),
                    materialize_grads=True,  # a pooler that the loss does not use
                )
                rows.append(torch.cat([g.reshape(-1) for g in found]))
        return torch.stack(rows)


LANGUAGE = {
    "gpt2, tied": Language(tiny.gpt2, NextToken(), tiny.collate),
    "gpt2, untied, eager": Language(lambda: tiny.gpt2(tied=False, attention="eager"), NextToken(), tiny.collate),
    "llama": Language(tiny.llama, NextToken(), tiny.collate),
    "bert": Language(tiny.bert, MaskedToken(), tiny.collate_masked),
    "bert classifier": Language(tiny.bert_classifier, Classification(), tiny.collate),
}
SLOW = ("gpt2, untied, eager", "llama", "bert classifier")


@pytest.mark.parametrize(
    "name", ["gpt2, tied", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", *SLOW))]
)
def test_contractions_of_language_models_equal_a_loop_without_padding(name: str):
    case = LANGUAGE[name]
    gradients = case.gradients()
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, SINGLE)):  # some layers compute in float32 always
        risk = case.risk(dtype)
        batch = whole(risk)
        for columns in (1, 9):
            lambdas = adjoints(risk.trained.size, columns, dtype)
            expected = gradients @ lambdas.double()
            worked = 0
            for way in WAYS:
                if contracting._failure(way, risk, batch, columns) is None:
                    assert_close(contract(way, risk, batch, lambdas)[1], expected, tolerance)
                    worked += 1
            assert contracting._failure("forward mode", risk, batch, columns) is None
            assert worked >= 2


# What must not matter


@by_way
def test_a_slice_of_a_batch_has_its_own_rows(way: Any):
    risk = MLP.risk()
    lambdas = adjoints(risk.trained.size, 2, torch.float64)
    expected = specimens.example_gradients(MLP) @ lambdas
    for indices in ([3], [4, 1], [6, 0, 2]):
        batch = next(iter(risk.read([indices])))
        assert_close(WAYS[way](risk, batch, lambdas)[1], expected[indices], 1e-12)


def test_per_example_gradients_come_in_slices_that_fit(monkeypatch: pytest.MonkeyPatch):
    risk = MLP.risk()
    lambdas = adjoints(risk.trained.size, 3, torch.float64)
    expected = specimens.example_gradients(MLP) @ lambdas
    for rows in (1, 3, 5):  # 7 = 3 + 3 + 1 = 5 + 2
        monkeypatch.setattr(contracting, "GRADIENT_BYTES", rows * 8 * risk.trained.size)
        losses, dots = per_example(risk, whole(risk), lambdas)
        assert_close(dots, expected, 1e-12)
        assert len(losses) == N


def test_more_adjoints_than_go_together(monkeypatch: pytest.MonkeyPatch):
    risk = MLP.risk()
    lambdas = adjoints(risk.trained.size, 7, torch.float64)
    expected = specimens.example_gradients(MLP) @ lambdas
    for together in (1, 2, 3, 7, 100):
        monkeypatch.setattr(contracting, "TANGENTS", together)
        assert_close(forward_mode(risk, whole(risk), lambdas)[1], expected, 1e-12)


@by_way
def test_the_name_of_a_way_is_the_way(way: Any):
    risk = MLP.risk()
    lambdas = adjoints(risk.trained.size, 2, torch.float64)
    for found, expected in zip(
        contract(way, risk, whole(risk), lambdas), WAYS[way](risk, whole(risk), lambdas), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


# Batches that hold more than tensors


class Described(nn.Module):
    """Takes a list of strings beside its input, and looks at the strings."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.long = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor, text: list[str]) -> Tensor:
        rows = [(self.long if len(t) > 3 else self.short)(row) for row, t in zip(x, text, strict=True)]
        return torch.stack(rows)


def described() -> Risk:
    x, y = MLP.data().tensors
    words = ["a", "four", "two", "seven", "i", "longer", "no"]
    rows = [{"x": row, "text": word, "label": int(label) % 2} for row, word, label in zip(x, words, y, strict=True)]
    stage = Stage("only", model=Described().double(), objective=Classification(), data=rows)
    return BoundStage.of(stage, None).risk


def test_strings_in_a_batch_are_passed_on():
    risk = described()
    batch = whole(risk)
    assert batch.content["text"][1] == "four"
    for columns in (1, 3):
        lambdas = adjoints(risk.trained.size, columns, torch.float64)
        forward, single = (WAYS[way](risk, batch, lambdas) for way in ("forward mode", "one example at a time"))
        for one, other in zip(forward, single, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
        assert bool((forward[1] != 0).all())
    why = contracting._failure("per-example gradients", risk, batch, 2)
    assert why == "the batch holds more than tensors of one row per example"
    assert choose(risk, batch, 100)[0] == "forward mode"


# The choice


def probed(risk: Risk, columns: int) -> tuple[Any, str]:
    probe = next(iter(risk.read([risk.examples.batch_indices(size=2)[0]])))
    found = choose(risk, probe, columns)[:2]
    assert choose(risk, probe, columns)[:2] == found
    return found


@named(MLP, LSTM, ENCODER)
def test_one_adjoint_goes_by_forward_mode(specimen: Specimen):
    assert probed(specimen.risk(), 1) == ("forward mode", "fewest operations for 1 adjoint")


def convolution() -> nn.Module:
    """Its forward pass takes many more operations than it has parameters: products with adjoints are cheap."""
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(18), nn.Flatten())


WIDE = Specimen("wide", convolution, (1, 20, 20))
BARE = Specimen("wide, with a parameter of its own", lambda: Shifted(convolution()), (1, 20, 20))


class Shifted(nn.Module):
    """A parameter that no layer holds, so that no tap sees it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.shift = inner, nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        return found + self.shift.sum() * found.detach().cos()


def test_many_adjoints_share_the_gradients_of_a_convolution():
    assert probed(WIDE.risk(), 2) == ("forward mode", "fewest operations for 2 adjoints")
    assert probed(WIDE.risk(), 9) == ("layer by layer", "9 adjoints share them")
    for columns, expected in ((3, "forward mode"), (9, "per-example gradients")):
        way, why = probed(BARE.risk(), columns)
        assert way == expected
        assert why.startswith("not layer by layer: 'shift' is not tapped: it belongs to no layer, but to the model")


def test_where_gradients_do_not_fit_they_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contracting, "GRADIENT_BYTES", 100)
    assert probed(WIDE.risk(), 1)[0] == "forward mode"
    assert probed(WIDE.risk(), 50)[0] == "layer by layer"
    way, why = probed(BARE.risk(), 50)
    assert way == "one example at a time"
    assert why.startswith("not layer by layer: ")


def test_of_a_large_table_no_gradient_is_taken(monkeypatch: pytest.MonkeyPatch):
    # An example touches a few rows of it, but its gradient is as large as the table.
    monkeypatch.setattr(contracting, "GRADIENT_BYTES", 100)
    table = nn.Embedding(600, 4), nn.Flatten(), nn.Linear(20, 2)
    specimen = Specimen("table", lambda: nn.Sequential(*table), (5,), tokens=True)
    costs = contracting.counted_passes(specimen.risk(), whole(specimen.risk()), 50)
    assert min(costs, key=lambda way: costs[way]) == "layer by layer"
    assert costs["one example at a time"] > 20 * costs["layer by layer"]


def bare(specimen: Specimen) -> Specimen:
    """The same with a parameter that no layer holds."""
    return replace(specimen, name=f"{specimen.name}, shifted", make=lambda: Shifted(specimen.make()))


FALLBACKS = {
    "embedding bag": (
        BAG,
        "per-example gradients",
        *[r"no forward mode \(.*_embedding_bag.* and not layer by layer \("] * 2,
    ),
    "with a batching rule": (BACKWARDS_BATCHED, "layer by layer", *["no forward mode: .*the jvp function"] * 2),
    "without": (BACKWARDS, "layer by layer", *["no forward mode: .*Backwards|no forward mode: .*the jvp function"] * 2),
    "embedding bag, shifted": (
        bare(BAG),
        "per-example gradients",
        *[r"no forward mode \(.*_embedding_bag.* and not layer by layer \("] * 2,
    ),
    "with a batching rule, shifted": (
        bare(BACKWARDS_BATCHED),
        "per-example gradients",
        *[r"no forward mode \(.*the jvp function.* and not layer by layer \('shift' is not tapped"] * 2,
    ),
    "without, shifted": (
        bare(BACKWARDS),
        "one example at a time",
        *[r"no forward mode \(.*\) and not layer by layer \(.*\) and no batched gradients \(.*Backwards"] * 2,
    ),
}


@pytest.mark.parametrize("columns", [1, 9])
@pytest.mark.parametrize("case", FALLBACKS)
def test_without_forward_mode_there_is_another_way_and_a_reason(case: str, columns: int):
    specimen, expected, *reasons = FALLBACKS[case]
    reason = reasons[columns > 1]
    risk = specimen.risk()
    way, why = probed(risk, columns)
    assert way == expected
    assert re.match(reason, why), why
    assert "\n" not in why
    lambdas = adjoints(risk.trained.size, columns, torch.float64)
    found = contract(way, risk, whole(risk), lambdas)[1]
    assert_close(found, specimens.example_gradients(specimen) @ lambdas, 1e-12)


def test_a_probe_of_one_example_will_do():
    risk = MLP.risk()
    one = next(iter(risk.read([[2]])))
    assert choose(risk, one, 1)[0] == "forward mode"
    assert choose(risk, one, 50)[0] in WAYS


def test_an_error_of_the_loss_is_not_taken_for_a_missing_derivative():
    def losses(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).sum()

    risk = MLP.risk(objective=losses)
    with pytest.raises(DataError, match="the loss was reduced to one number for 7 examples"):
        choose(risk, whole(risk), 1)
