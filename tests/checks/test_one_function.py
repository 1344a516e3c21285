"""What is not one function of the parameters is refused: caches, modes, batches written into."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace.checks import Level
from stagetrace.errors import DataError, DescriptionError, DifferentiationError
from tests.checks.probe import Probe, X, Y, findings


def test_the_checks_draw_nothing_from_the_caller():
    model = Probe()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    findings(model)
    assert torch.equal(torch.rand(3), expected)


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
