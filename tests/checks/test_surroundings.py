"""A trace is of the models as they are now, whatever was changed before and whatever surrounds the call."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from stagetrace import Chain, Frozen, Stage
from stagetrace.checks import Level
from stagetrace.errors import DescriptionError, StagetraceWarning
from stagetrace.objectives import Regression
from tests.checks.probe import DATA, Probe, X, findings, traced, two_stages


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
