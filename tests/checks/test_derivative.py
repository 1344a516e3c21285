"""The derivative is judged before it is trusted: silent zeros are refused, a backward of its own is said."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Direct, Frozen, Hessian, Proximal, Query, Stage, trace
from stagetrace.checks import Finding, Level, verify_stage
from stagetrace.checks.derivative import difference
from stagetrace.errors import DataError, DescriptionError, DifferentiationError, StagetraceWarning
from stagetrace.objectives import Regression


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = drawn(9, 3, seed=1), drawn(9, 1, seed=2)
DATA = TensorDataset(X, Y)


class Probe(nn.Module):
    """A body and a head; what is done to the body's output is the test's."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 1)
        self.register_buffer("scale", torch.full((1,), 1.5))
        self.between = between
        self.double()
        for number, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(self.body(x) if self.between is None else self.between(self.body, x))


def findings(model: nn.Module, loss: Any = None, data: Any = DATA, **settings: Any) -> dict[str, Finding]:
    stage = Stage("only", model=model, objective=loss or Regression(), data=data, **settings)
    return {finding.what: finding for finding in verify_stage(Chain(stage)["only"])}


def traced(chain: Chain, query: Any = DATA, **settings: Any) -> Any:
    return trace(chain, Query(query, **settings), curvature=Hessian(), solver=Direct())


def two_stages(between: Callable[[nn.Module, Tensor], Tensor] | None, link: Any) -> Chain:
    before, after = Probe(), Probe(between)
    after.body.load_state_dict(before.body.state_dict())
    after.body.requires_grad_(isinstance(link, Proximal))
    return Chain(
        Stage("before", model=before, objective=Regression(), data=DATA, weight_decay=9.0),
        Stage("after", model=after, objective=Regression(), data=DATA, weight_decay=9.0, link=link),
    )


# A body whose gradient is cut off


def under_no_grad(body: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return body(x)


def under_inference_mode(body: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        hidden = body(x)
    return hidden.clone()


def detached(body: nn.Module, x: Tensor) -> Tensor:
    return body(x).detach()


def by_data(body: nn.Module, x: Tensor) -> Tensor:
    return body(x).data


def through_numpy(body: nn.Module, x: Tensor) -> Tensor:
    return torch.as_tensor(np.array(body(x).detach().numpy()))


def of_detached_weights(body: nn.Module, x: Tensor) -> Tensor:
    weight, bias = body[0].weight, body[0].bias  # pyright: ignore[reportIndexIssue]
    return torch.tanh(nn.functional.linear(x, weight.detach(), bias))


@pytest.mark.parametrize("link", [Frozen("body"), Proximal("body", alpha=0.1)])
@pytest.mark.parametrize(
    "cut", [under_no_grad, under_inference_mode, detached, by_data, through_numpy, of_detached_weights]
)
def test_a_body_without_a_gradient_is_refused(cut: Any, link: Any):
    with pytest.raises(DifferentiationError, match=r"stage 'after': the loss depends on 'body\.0\.weight'.*is zero"):
        traced(two_stages(cut, link))


def test_the_same_body_with_its_gradient_is_traced():
    assert traced(two_stages(None, Frozen("body")))["before"].values.any()


def test_a_query_that_cuts_the_gradient_is_refused():
    def loss(model: Any, batch: Any) -> Tensor:
        hidden = model.body(batch[0]).detach()
        return (model.head(hidden) - batch[1]).square().mean(1)

    with pytest.raises(DifferentiationError, match=r"the query: the loss depends on 'body\.0\.weight'"):
        traced(two_stages(None, Frozen("body")), objective=loss)


def test_a_hook_that_cuts_the_gradient_is_refused():
    model = Probe()
    model.body.register_forward_hook(lambda module, given, output: output.detach())
    with pytest.raises(DifferentiationError, match=r"depends on 'body\.0\.weight', 'body\.0\.bias'"):
        findings(model)


def test_a_cut_is_seen_in_single_precision_too():
    model, data = Probe(under_no_grad).float(), TensorDataset(X.float(), Y.float())
    with pytest.raises(DifferentiationError, match="depends on 'body"):
        findings(model, data=data)


def test_a_cut_is_seen_where_the_model_refuses_float64():
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Probe(under_no_grad).float()

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return self.inner(x)

    data = TensorDataset(X.float(), Y.float())
    with pytest.raises(DifferentiationError, match=r"depends on 'inner\.body"):
        findings(Single(), data=data)


# Parameters whose gradient is rightly zero


class Adapter(nn.Module):
    """A base and a low-rank correction that starts at zero, so that one of its factors has no slope."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 1)
        self.down, self.up = nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.up.weight)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 1), nn.Linear(3, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Dead(nn.Module):
    """A rectifier so far below zero that nothing comes through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(3, 2), nn.Linear(3, 1)
        nn.init.constant_(self.first.bias, -100.0)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x) + torch.relu(self.first(x)).sum(1, keepdim=True)


class Attending(nn.Module):
    """Softmax does not feel a bias of the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, x.roll(1, dims=1), -x], dim=1)
        weights = torch.softmax(self.query(tokens) @ self.key(tokens).mT, dim=-1)
        return self.out((weights @ tokens).mean(1))


@pytest.mark.parametrize(
    ("model", "flat"),
    [(Adapter, "down.weight"), (Unused, "unused.weight"), (Dead, "first.weight"), (Attending, None), (Probe, None)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parameters_without_a_slope_are_told_and_not_refused(model: Any, flat: str | None, dtype: torch.dtype):
    torch.manual_seed(0)
    found = findings(model().to(dtype), data=TensorDataset(X.to(dtype), Y.to(dtype)))["derivative"]
    assert found.level is Level.OK
    assert flat is None or f"have zero gradient there ('{flat}'" in found.text


def test_examples_that_are_fitted_without_any_loss_do_not_hide_the_others():
    """A hinge loss is zero on most examples; the few that are not give the slope."""
    x = torch.cat([drawn(300, 3).abs() + 2.0, -torch.ones(4, 3, dtype=torch.float64)])
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.ones_(model.weight)

    def hinge(model: nn.Module, batch: Any) -> Tensor:
        return torch.relu(1 - model(batch[0]))[:, 0]

    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    data = TensorDataset(x[order], Y.new_zeros(len(x), 1))
    assert findings(model, hinge, data, batch_size=32)["derivative"].level is Level.OK


def optimum(*targets: float) -> tuple[nn.Linear, TensorDataset]:
    """One weight without bias at the exact mean of its targets."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, sum(targets) / len(targets))
    y = torch.tensor(targets, dtype=torch.float64)[:, None]
    return model, TensorDataset(torch.ones_like(y), y)


def test_gradients_that_cancel_at_the_optimum_are_no_loss_without_parameters():
    model, data = optimum(1.0, 3.0)
    chain = Chain(Stage("only", model=model, objective=Regression(), data=data))
    found = trace(chain, Query([(3.0, 8.0)]), curvature=Hessian(), solver=Direct())["only"].values
    # a unit of loss i moves the weight by -2 (w - y_i) / 2, and the query (3 w - 8)^2 by 2 (-2) 3 times that
    torch.testing.assert_close(found, torch.tensor([12.0, -12.0], dtype=torch.float64))


def test_losses_that_are_all_zero_at_the_optimum_still_depend_on_their_parameters():
    model, data = optimum(2.0, 2.0)
    assert findings(model, data=data)["derivative"].level is Level.OK


def test_a_loss_without_any_parameter_is_refused():
    with pytest.raises(DataError, match="does not depend on the parameters it is given"):
        findings(Probe(), lambda model, batch: batch[1].square().mean(1))


# Another model than the one that is handed over


def closing_over(model: Any) -> Callable[[nn.Module, Any], Tensor]:
    return lambda handed, batch: (model(batch[0]) - batch[1]).square().mean(1)


def closing_over_the_body(model: Any) -> Callable[[Any, Any], Tensor]:
    return lambda handed, batch: (handed.head(model.body(batch[0])) - batch[1]).square().mean(1)


class Holding:
    """An objective that keeps a model of its own."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return self.model(batch[0]) + 0 * model(batch[0])

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return (outputs - batch[1]).square().mean(1)


@pytest.mark.parametrize("loss", [closing_over, closing_over_the_body, Holding])
def test_a_loss_that_calls_the_users_own_model_is_refused(loss: Any):
    model = Probe()
    with pytest.raises(DescriptionError, match=r"the loss reads 'body\.0\.weight'.* of the original model"):
        findings(model, loss(model))


def test_a_frozen_body_from_outside_is_refused():
    """Nothing of it requires a gradient, so that autograd alone sees nothing."""
    chain = two_stages(None, Frozen("body"))
    after = chain.last.stage
    loss = closing_over_the_body(after.model)
    outside = Stage("after", model=after.model, objective=loss, data=DATA, link=after.link)
    with pytest.raises(DescriptionError, match="of the original model"):
        traced(Chain(chain.stages[0], outside))


@pytest.mark.parametrize("loss", [closing_over, closing_over_the_body])
def test_a_loss_that_calls_a_trainable_copy_is_refused(loss: Any):
    model = Probe()
    with pytest.raises(DescriptionError, match=r"a trainable parameter of shape .* that the model does not have"):
        findings(model, loss(copy.deepcopy(model)))


def test_a_frozen_copy_in_place_of_the_kept_body_gives_no_scores():
    chain = two_stages(None, Frozen("body"))
    loss = closing_over_the_body(copy.deepcopy(chain.last.stage.model).requires_grad_(False))
    outside = Stage(
        "after", model=chain.last.stage.model, objective=loss, data=DATA, link=Frozen("body"), weight_decay=9.0
    )
    said = pytest.warns(
        StagetraceWarning, match="stage 'after': the gradient of the loss is zero in all inherited parameters"
    )
    with said, pytest.raises(DataError, match="stage 'before': every score is zero"):
        traced(Chain(chain.stages[0], outside))


def test_a_teacher_that_is_constant_is_no_second_model():
    model, teacher = Probe(), Probe(torch.nn.Module.__call__).requires_grad_(False)

    def distilled(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]) - teacher(batch[0]) - batch[1]).square().mean(1)

    assert findings(model, distilled)["dependence"].level is Level.OK


@pytest.mark.parametrize("constant", [False, True])
def test_a_teacher_that_is_an_earlier_stages_model_is_said(constant: bool):
    chain = two_stages(None, Frozen("body"))
    first, last = chain.stages
    last.model.get_parameter("head.weight").data.mul_(2)
    teacher = copy.deepcopy(first.model) if constant else first.model

    def distil(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            target = teacher(batch[0])
        return (model(batch[0]) - target).square().sum(1)

    after = Stage("after", model=last.model, objective=distil, data=DATA, link=Frozen("body"))
    chain = Chain(first, after)
    found = {f.what: f for f in verify_stage(chain["after"], [first])}["dependence"]
    assert found.level is (Level.OK if constant else Level.WARNING)
    assert constant or "'head.weight'" in found.text
    if not constant:
        with pytest.warns(StagetraceWarning, match="earlier stage's model"):
            traced(chain, objective=Regression())


def test_a_hook_that_calls_the_users_own_model_is_refused():
    model = Probe()
    model.body.register_forward_hook(lambda module, given, output: output + model.body.get_submodule("0")(given[0]))
    with pytest.raises(DescriptionError, match="of the original model"):
        findings(model)


def test_a_parameter_that_is_kept_in_a_list_is_refused():
    model: Any = Probe()
    model.__dict__["kept_aside"] = [model.head.weight]
    model.forward = lambda x: nn.functional.linear(model.body(x), model.kept_aside[0])
    with pytest.raises(DescriptionError, match=r"of the original model"):
        findings(model)


def test_weights_of_the_loss_that_are_trained_are_refused():
    temperature = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(DescriptionError, match=r"a trainable tensor of shape \[\]"):
        findings(Probe(), lambda model, batch: (temperature * model(batch[0]) - batch[1]).square().mean(1))


# A backward that is not the derivative


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


# Scores that would all be zero


def test_a_query_at_its_least_is_refused():
    chain = two_stages(None, Frozen("body"))
    with torch.no_grad():
        fitted = TensorDataset(X, chain.last.stage.model(X))
    with pytest.raises(DataError, match=r"the query: the loss does not depend|the query: the gradient of its loss is"):
        traced(chain, fitted)


def test_a_single_flat_query_is_named():
    chain = two_stages(None, Frozen("body"))
    targets = Y.clone()
    with torch.no_grad():
        targets[4] = chain.last.stage.model(X[4:5])[0]
    with pytest.warns(StagetraceWarning, match="the gradient of the loss of example 4 is zero"):
        scores = traced(chain, TensorDataset(X, targets), reduction="none")["before"].values
    assert not scores[4].any()
    assert scores[3].any()


def test_the_surroundings_of_the_call_change_nothing():
    chain = two_stages(None, Frozen("body"))
    expected = traced(chain)["before"].values
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            assert torch.equal(traced(chain)["before"].values, expected)
            assert torch.equal(traced(two_stages(None, Frozen("body")))["before"].values, expected)


def test_a_model_made_under_inference_mode_is_traced_as_any_other():
    expected = traced(two_stages(None, Frozen("body")))["before"].values
    with torch.inference_mode():
        chain = two_stages(None, Frozen("body"))
    assert torch.equal(traced(chain)["before"].values, expected)


def test_differences_know_how_far_to_trust_themselves():
    rng = np.random.default_rng(0)
    for noise in (1e-15, 1e-10, 1e-7):
        slope = difference(lambda h, n=noise: np.exp(1 + h) + n * rng.standard_normal(), np.e, noise)
        assert abs(slope.value - np.e) <= slope.uncertainty <= 1.0


def test_the_checks_draw_nothing_from_the_caller():
    model = Probe()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    findings(model)
    assert torch.equal(torch.rand(3), expected)


# What is not one function of the parameters


class Caching(Probe):
    """Fuses its weights at the first call in eval mode, as some layers do for speed."""

    fused: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is None:
            self.fused = (2 * self.head.weight).detach() if self.keeps_values else 2 * self.head.weight.clone()
        return nn.functional.linear(self.body(x), self.fused, self.head.bias)

    keeps_values = True


def test_a_model_that_caches_its_weights_is_refused():
    with pytest.raises(
        (DescriptionError, DifferentiationError), match=r"keeps something of an earlier call|depends on"
    ):
        findings(Caching())


def test_a_loss_that_asks_whether_gradients_are_recorded_is_refused():
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (2 if torch.is_grad_enabled() else 1) * (model(batch[0]) - batch[1]).square().mean(1)

    with pytest.raises(
        DataError, match=r"the loss of example \d+ is .* under no_grad\(\) and .* gradients are recorded"
    ):
        findings(Probe(), loss)


@pytest.mark.parametrize("listed", [True, False])
def test_a_loss_that_writes_into_its_batch_is_refused_and_the_data_are_left_alone(listed: bool):
    x, y = X.clone(), Y.clone()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0].clamp_(-0.1, 0.1)) - batch[1]).square().mean(1)

    data = list(zip(x, y, strict=True)) if listed else TensorDataset(x, y)
    with pytest.raises(DataError, match="changes its batch in place"):
        findings(Probe(), loss, data)
    assert torch.equal(x, X)


def test_a_penalty_on_the_slope_in_the_inputs_is_no_second_model():
    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.enable_grad():
            x = batch[0].clone().requires_grad_()
            values = model(x)
            slope = torch.autograd.grad(values.sum(), x, create_graph=True)[0]
        return (values - batch[1]).square().mean(1) + slope.square().sum(1)

    found = findings(Probe(), loss)
    assert {found[what].level for what in ("dependence", "derivative", "second derivative")} == {Level.OK}


def test_recomputation_in_the_backward_pass_is_no_false_alarm():
    class Recomputing(Probe):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False))

    assert findings(Recomputing())["second derivative"].level is not Level.WARNING


# What the caller changed between two calls


def test_a_chain_is_read_anew_by_each_trace():
    chain = two_stages(None, Frozen("body"))
    first = traced(chain)["before"].values
    after: Any = chain.last.stage.model
    changes: list[Callable[[], Any]] = [
        lambda: after.scale.mul_(2.0),
        lambda: setattr(after.head.weight, "data", 2 * after.head.weight.data),
        lambda: setattr(after.head, "weight", nn.Parameter(0.5 * after.head.weight.detach())),
        lambda: setattr(after, "between", lambda body, x: 1.5 * body(x)),
    ]
    for change in changes:
        change()
        now = traced(chain)["before"].values
        assert not torch.allclose(now, first)
        assert torch.equal(now, traced(Chain(*(replace(stage) for stage in chain.stages)))["before"].values)
        first = now


def test_a_kept_layer_that_the_link_forgets_is_named():
    chain = two_stages(None, Frozen("body"))
    link = Frozen("body.0.weight")
    forgetting = Stage(
        "after", model=chain.last.stage.model, objective=Regression(), data=DATA, link=link, weight_decay=9.0
    )
    with pytest.warns(StagetraceWarning, match=r"stage 'after': 'body\.0\.bias' is constant here and equal to what"):
        traced(Chain(chain.stages[0], forgetting))


def test_a_gradient_hook_is_named():
    model = Probe()
    model.head.weight.register_hook(lambda slope: 0 * slope)
    stage = Stage("only", model=model, objective=Regression(), data=DATA, weight_decay=9.0)
    with pytest.warns(StagetraceWarning, match=r"stage 'only': 'head\.weight' has a gradient hook"):
        traced(Chain(stage))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_layers_that_a_hook_fills_before_each_call_can_be_copied(wrap: Any):
    model = nn.Sequential(wrap(nn.Linear(3, 1))).double().eval()
    model(X)
    assert findings(model)["derivative"].level is Level.OK


def test_a_buffer_in_a_parameter_s_memory_is_refused():
    model = Probe()
    model.register_buffer("transposed", model.head.weight.data)
    with pytest.raises(DescriptionError, match=r"are two tensors in the same memory"):
        findings(model)


@pytest.mark.parametrize(
    ("model", "says"), [(nn.LazyLinear(1), "has no shape yet"), (nn.Linear(3, 1, device="meta"), "meta device")]
)
def test_a_model_without_values_is_refused(model: nn.Module, says: str):
    with pytest.raises(DescriptionError, match=says):
        findings(model)


@pytest.mark.parametrize("shared", [1, None, nn.Linear(1, 1)])
def test_what_names_nothing_is_refused(shared: Any):
    with pytest.raises(DescriptionError, match=r"Frozen: shared must be a name"):
        Frozen(shared)


def test_features_that_were_computed_beforehand_are_said():
    """The query goes through the body, the stage's own loss starts from features of it: half of the influence."""
    chain = two_stages(None, Frozen("body"))
    model: Any = chain.last.stage.model
    with torch.no_grad():
        features = TensorDataset(model.body(X), Y)

    def loss(model: Any, batch: Any) -> Tensor:
        return (model.head(batch[0]) - batch[1]).square().mean(1)

    head = Stage("after", model=model, objective=loss, data=features, link=Frozen("body"), weight_decay=9.0)
    with pytest.warns(StagetraceWarning, match="features computed beforehand"):
        trace(
            Chain(chain.stages[0], head),
            Query(DATA, objective=Regression()),
            curvature=Hessian(),
            solver=Direct(),
        )


def test_a_stage_that_overwrote_the_one_before_is_refused():
    model = Probe()
    before = Stage("before", model=model, objective=Regression(), data=DATA)
    after = Stage("after", model=model, objective=Regression(), data=DATA, link=Proximal("body", alpha=0.1))
    with pytest.raises(DescriptionError, match=r"'body\.0\.weight' was trained further, but it is the very tensor"):
        Chain(before, after)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"of": 3}, r"of=\['pretrain'\]"), ({"out": 3}, "must be a folder"), ({"progress": "x"}, "must be True or False")],
)
def test_options_of_another_kind_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(DescriptionError, match=says):
        trace(two_stages(None, Frozen("body")), Query(DATA), **options)
