"""A backward, or a second one, that is not the derivative is said with its size."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Direct, Frozen, Hessian, Query, Stage, trace
from stagetrace.checks import Level, verify_stage
from stagetrace.checks.derivative import difference
from stagetrace.errors import StagetraceWarning
from stagetrace.objectives import Regression
from tests.checks.probe import DATA, Probe, X, Y, findings, two_stages


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float) -> Tensor:
        ctx.by = by
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.by * slope, None


def straight_through(body: nn.Module, x: Tensor) -> Tensor:
    hidden = body(x)
    return hidden + ((4 * hidden).round() / 4 - hidden).detach() + 0.3 * hidden.detach().square()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("by", [-1.0, 1.1, 0.5])
def test_a_backward_of_its_own_is_said_with_its_size(by: float, dtype: torch.dtype):
    model = nn.Sequential(nn.Linear(3, 1, bias=False)).to(dtype)
    data = TensorDataset(X.to(dtype), Y.to(dtype))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return Scaled.apply(model(batch[0]) - batch[1], by).square().mean(1)  # pyright: ignore[reportAttributeAccessIssue,reportOptionalMemberAccess]

    found = findings(model, loss, data)["derivative"]
    assert found.level is Level.WARNING
    # with one parameter tensor the two derivatives are `by` and 1 times the same number
    said = float(found.text.split("differ by ")[1].split("%")[0]) / 100
    assert said == pytest.approx(abs(by - 1) / abs(by), rel=0.01)


def test_a_right_backward_of_its_own_is_right():
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return Scaled.apply(model(batch[0]) - batch[1], 1.0).square().mean(1)  # pyright: ignore[reportAttributeAccessIssue,reportOptionalMemberAccess]

    assert findings(Probe(), loss)["derivative"].level is Level.OK


def test_a_trace_warns_of_it_and_keeps_the_finding():
    stage = Stage("only", model=Probe(straight_through), objective=Regression(), data=DATA, weight_decay=1.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", StagetraceWarning)
        result = trace(Chain(stage), Query(DATA), curvature=Hessian(), solver=Direct(damping=10.0))
    texts = [str(warning.message) for warning in said]
    for where in ("stage 'only'", "the query"):
        assert any(t.startswith(f"{where}: the gradient that autograd gives is not the derivative") for t in texts)
    checks: Any = result.statistics["checks"]
    kept = [check for check in checks if check["level"] == "WARNING"]
    assert {(check["where"], check["what"]) for check in kept} == {("only", "derivative"), ("query", "derivative")}


# A second derivative that is not that of the gradient


class Squared(torch.autograd.Function):
    """`x^3` whose backward is right, but computed from numbers that no second backward sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = 3 * x.detach().square()
        return x.detach() ** 3

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return slope * ctx.slope


def of_cubes(model: nn.Module, batch: Any) -> Tensor:
    return Squared.apply(model(batch[0])).sum(1)  # pyright: ignore[reportAttributeAccessIssue,reportOptionalMemberAccess]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_second_derivative_that_is_lost_is_said_with_its_size(dtype: torch.dtype):
    data = TensorDataset(X.to(dtype), Y.to(dtype))
    found = findings(nn.Linear(3, 1).to(dtype), of_cubes, data)
    assert found["derivative"].level is Level.OK
    assert found["second derivative"].level is Level.WARNING
    assert "they differ by" in found["second derivative"].text


@pytest.mark.parametrize("kind", [nn.Tanh, nn.ReLU, nn.GELU, nn.Hardtanh, nn.ELU])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_second_derivatives_of_usual_layers_are_right(kind: Any, dtype: torch.dtype):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), kind(), nn.Linear(8, 8), kind(), nn.Linear(8, 1)).to(dtype)
    found = findings(model, data=TensorDataset(X.to(dtype), Y.to(dtype)))
    assert [found[what].level for what in ("derivative", "second derivative")] == [Level.OK, Level.OK]


def test_the_coupling_is_judged_too():
    """The lost part lies between the head, which is trained, and the body, which is kept."""

    def loss(model: Any, batch: Any) -> Tensor:
        return Squared.apply(model.body(batch[0])).sum(1) * model.head(batch[0].new_ones(len(batch[0]), 4))[:, 0]  # pyright: ignore[reportAttributeAccessIssue,reportOptionalMemberAccess]

    chain = two_stages(None, Frozen("body"))
    after = Stage("after", model=chain.last.stage.model, objective=loss, data=DATA, link=Frozen("body"))
    found = {f.what: f for f in verify_stage(Chain(chain.stages[0], after)["after"])}
    assert found["second derivative"].level is Level.OK  # linear in the cubes: the coupling needs their first only

    def curved(model: Any, batch: Any) -> Tensor:
        return Squared.apply(model.head(model.body(batch[0]))).sum(1)  # pyright: ignore[reportAttributeAccessIssue,reportOptionalMemberAccess]

    after = Stage("after", model=chain.last.stage.model, objective=curved, data=DATA, link=Frozen("body"))
    found = {f.what: f for f in verify_stage(Chain(chain.stages[0], after)["after"])}
    assert found["second derivative"].level is Level.WARNING


def test_differences_know_how_far_to_trust_themselves():
    rng = np.random.default_rng(0)
    for noise in (1e-15, 1e-10, 1e-7):
        slope = difference(lambda h, n=noise: np.exp(1 + h) + n * rng.standard_normal(), np.e, noise)
        assert abs(slope.value - np.e) <= slope.uncertainty <= 1.0


def test_recomputation_in_the_backward_pass_is_no_false_alarm():
    class Recomputing(Probe):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False))

    assert findings(Recomputing())["second derivative"].level is not Level.WARNING
