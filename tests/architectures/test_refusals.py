"""Models that cannot be traced as they are: each refusal says what to type, and what is typed then works."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import GaussNewton, Hessian, Stage
from stagetrace.curvature.plan import make_plan
from stagetrace.errors import DataError, DescriptionError, DifferentiationError, StagetraceError
from stagetrace.objectives import Classification
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import mean_gradient
from stagetrace.tracing.contract import choose
from tests.architectures import layers
from tests.architectures.layers import Through
from tests.architectures.zoo import ROWS, TOKENS


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def stage(model: nn.Module, data: Any = ROWS) -> Stage:
    return Stage("only", model=model, objective=Classification(), data=data)


def multiply(model: nn.Module, data: Any = ROWS, curvature: Any = None) -> Tensor:
    bound = BoundStage.of(stage(model, data), None)
    return (curvature or Hessian()).operator(bound) @ bound.trained.zeros(1)[:, 0]


def wrapped_as(name: str) -> nn.Module:
    """A module of that class name around a model: the real ones need processes."""
    outer = type(name, (nn.Module,), {})()
    outer.module = small()
    return outer


class OldWeightNorm(nn.Module):
    """What `torch.nn.utils.weight_norm` computes, by the fused operation behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.v, self.head = nn.Parameter(torch.ones(4, 1)), nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch._weight_norm(self.v, self.g, 0)  # pyright: ignore[reportPrivateImportUsage]
        return self.head((x @ weight.T).tanh())


def long_rows() -> nn.Module:
    model = layers.Lookup(max_norm=0.5)
    with torch.no_grad():
        model.table.weight.fill_(1.0)
    return model


REFUSED: dict[str, tuple[Callable[[], Any], type[StagetraceError], str]] = {
    "data parallel": (
        lambda: stage(nn.DataParallel(small())),
        DescriptionError,
        r"stage 'only': model is wrapped in DataParallel; give what is inside, model=wrapped\.module",
    ),
    "distributed": (
        lambda: stage(wrapped_as("DistributedDataParallel")),
        DescriptionError,
        r"wrapped in DistributedDataParallel; give what is inside, model=wrapped\.module .*torchrun",
    ),
    "sharded": (
        lambda: stage(nn.Sequential(wrapped_as("FullyShardedDataParallel"))),
        DescriptionError,
        r"the parameters of '0' lie in flat shards .*wrap the plain module by torch\.distributed\.fsdp\.fully_shard",
    ),
    "scripted": (
        lambda: stage(nn.Sequential(torch.jit.script(small()))),
        DescriptionError,
        r"'0' is a scripted or traced module .*plain\.load_state_dict\(scripted\.state_dict\(\)\)",
    ),
    "complex": (
        lambda: multiply(nn.Linear(3, 2).to(torch.complex64)),
        DescriptionError,
        r"stage 'only': parameter 'weight' has dtype torch\.complex64; only real floating-point",
    ),
    "rows over the norm": (
        lambda: multiply(long_rows(), TOKENS),
        DescriptionError,
        r"embedding 'table' has max_norm=0\.5, but a row of norm 2, .*model\.table\.weight\.copy_\(torch\.renorm",
    ),
    "the bag as a function": (
        lambda: multiply(layers.FunctionalBag(), TOKENS),
        DifferentiationError,
        r"_embedding_bag.*replace that operation, or use curvature=Identity\(\) for this stage: use nn\.EmbeddingBag",
    ),
    "fused weight norm": (
        lambda: multiply(OldWeightNorm()),
        DifferentiationError,
        r"the Hessian of an example is not symmetric .*parametrizations\.weight_norm",
    ),
    "a list": (
        lambda: multiply(layers.Returning(lambda z: [z])),
        DataError,
        r"the model returned a list .* write an objective whose outputs\(model, batch\) returns the tensor",
    ),
}


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning",
    "ignore:.*None of the inputs.*:UserWarning",
    "ignore:Complex modules:UserWarning",
)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused_with_what_to_type(name: str):
    attempt, kind, words = REFUSED[name]
    with pytest.raises(kind) as caught:
        attempt()
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_that_were_clipped_as_told_are_taken():
    model = long_rows()
    table = model.get_parameter("table.weight")
    with torch.no_grad():
        table.copy_(torch.renorm(table, 2, 0, 0.5))
        table.mul_(1 + 5e-5)  # as rounding might
    before = table.clone()
    assert bool(torch.isfinite(multiply(model, TOKENS)).all())
    assert torch.equal(table, before)


@pytest.mark.parametrize("curvature", [Hessian(), GaussNewton()], ids=str)
def test_a_bag_in_its_module_is_taken(curvature: Any):
    model = layers.Bag(mode="mean")
    assert bool(torch.isfinite(multiply(model, TOKENS, curvature)).all())
    assert type(model.bag) is nn.EmbeddingBag  # the user's own is as it was


def test_a_gradient_scaled_by_frequency_is_not_taken_for_a_derivative():
    plain = layers.Lookup()
    scaled = layers.Lookup(scale_grad_by_freq=True)
    scaled.load_state_dict(plain.state_dict())
    found, expected = (
        mean_gradient(BoundStage.of(stage(model, TOKENS), None).risk).trained for model in (scaled, plain)
    )
    torch.testing.assert_close(found, expected)


class Long(nn.Module):
    """The same layer, with or without many small operations after it."""

    def __init__(self, operations: int) -> None:
        super().__init__()
        self.layer, self.operations = nn.Linear(100, 2), operations

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        for _ in range(self.operations):
            out = out + 0
        return out


def test_many_small_operations_put_tracing_off():
    data = TensorDataset(torch.randn(4, 100), torch.tensor([0, 1, 1, 0]))
    few, many = (
        make_plan(BoundStage.of(stage(Long(operations), data), None).risk, "Hessian", range(4), 10**6, 2**50)
        for operations in (0, 500)
    )
    assert few.traced_from is not None
    assert many.traced_from is not None
    assert 1000 < few.traced_from < many.traced_from / 5


class Twice(torch.autograd.Function):
    """The identity, whose forward mode is twice too long: through it alone, Gauss-Newton stays symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * tangent


class Last(nn.Module):
    """A layer, and some operation on all that it gives."""

    def __init__(self, operation: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.operation = nn.Linear(3, 2), operation

    def forward(self, x: Tensor) -> Any:
        return self.operation(self.layer(x))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (lambda: Through(layers.WrongSine.apply), lambda: Through(torch.sin)),
        (lambda: Last(Twice.apply), lambda: Last(torch.clone)),
    ],
    ids=["not symmetric", "symmetric"],
)
def test_gauss_newton_does_without_a_wrong_forward_mode(wrong: Any, right: Any):
    wrong, right = wrong().double(), right().double()
    right.load_state_dict(wrong.state_dict())
    bound = BoundStage.of(stage(wrong), None)
    plan = make_plan(bound.risk, "GaussNewton", range(2), 2, 2**30)
    assert (plan.way, plan.missing) == (
        "retained graph",
        "forward mode gives another derivative than reverse mode",
    )
    assert plan.traced_from is None
    found, expected = (GaussNewton().operator(BoundStage.of(stage(model), None)) for model in (wrong, right))
    v = torch.randn(found.size, dtype=torch.float64)
    torch.testing.assert_close(found @ v, expected @ v)


def test_a_wrong_forward_mode_is_found_out():
    risk = BoundStage.of(stage(Through(layers.WrongSine.apply).double()), None).risk
    probe = next(iter(risk.read([[0, 1]])))
    for columns in (1, 3):
        way, why, _ = choose(risk, probe, columns)
        assert way == "layer by layer"
        assert why == "no forward mode: it gives another derivative than plain autograd"


def test_parameters_in_half_precision_give_scores_to_its_rounding():
    full = small()
    half = copy.deepcopy(full).bfloat16()
    expected = mean_gradient(BoundStage.of(stage(full), None).risk).trained
    found = mean_gradient(BoundStage.of(stage(half), None).risk).trained
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).norm()) <= 0.05 * float(expected.norm())
    risk = BoundStage.of(stage(half), None).risk
    assert choose(risk, next(iter(risk.read([[0, 1]]))), 1)[0] == "forward mode"
