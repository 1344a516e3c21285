"""Parameters whose gradient is rightly zero are told, not refused; scores that would all be zero are."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Direct, Frozen, Hessian, Query, Stage, trace
from stagetrace.checks import Level
from stagetrace.errors import DataError, StagetraceWarning
from stagetrace.objectives import Regression
from tests.checks.probe import Probe, X, Y, drawn, findings, traced, two_stages


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
