"""A loss that depends on parameters whose gradient is cut off is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Frozen, Proximal
from stagetrace.errors import DifferentiationError
from tests.checks.probe import Probe, X, Y, findings, traced, two_stages


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
