"""A loss that reads another model than the one it is handed is refused, or said."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Direct, Frozen, Hessian, Query, Stage, trace
from stagetrace.checks import Level, verify_stage
from stagetrace.errors import DataError, DescriptionError, StagetraceWarning
from stagetrace.objectives import Regression
from tests.checks.probe import DATA, Probe, X, Y, findings, traced, two_stages


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
