"""Chains to be trained again, ways to do it, and small models that cannot be."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Stage
from stagetrace.objectives import Regression
from stagetrace.validation import SGD, Adam, AdamW, Fit, Steps
from stagetrace.validation.fits.fit import Copies
from stagetrace.validation.resolving import leave_out
from stagetrace.validation.retrain import Retraining
from tests.chains import CASES, ChainCase, chain_of, query_of
from tests.oracles import Point, solved
from tests.validation.plain import Plain

BY_NAME = {case.name: case for case in CASES}
TIED = BY_NAME["tied, frozen"]
UNTIED = BY_NAME["untied, proximal 0.5"]
THREE = BY_NAME["three, proximal then frozen"]
PARTLY = BY_NAME["kept within proximal 0.5"]


def ends(case: ChainCase, position: int, seed: int = 3) -> Tensor:
    """Weights of four copies: all ones, an example out, half an example out, and any."""
    n = len(case.stages[position].x)
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.stack([torch.ones(n).double(), leave_out(n, [4]), leave_out(n, [2, 5], 0.5), 2 * drawn])


def handed(case: ChainCase, position: int, copies: int) -> Copies | None:
    """Another previous stage for each copy."""
    if position == 0:
        return None
    generator = torch.Generator().manual_seed(8)
    return {
        name: value + 0.1 * torch.randn(copies, *value.shape, generator=generator, dtype=torch.float64)
        for name, value in solved(case)[position - 1].items()
    }


def close(found: Copies, place: int, expected: Point, tolerance: float = 1e-10) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name][place], value, rtol=tolerance, atol=tolerance)


WAYS: dict[str, tuple[Plain, Callable[[], Steps]]] = {
    "Adam": (Plain("Adam", {"lr": 0.02}, 11, 5), lambda: Steps(Adam(0.02), 11, 5)),
    "Adam, other settings": (
        Plain("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}, 7, 4),
        lambda: Steps(Adam(0.01, (0.8, 0.95), 1e-3), 7, 4),
    ),
    "SGD": (Plain("SGD", {"lr": 0.1}, 9, 6), lambda: Steps(SGD(0.1), 9, 6)),
    "SGD, momentum": (
        Plain("SGD", {"lr": 0.05, "momentum": 0.9}, 12, 10),
        lambda: Steps(SGD(0.05, 0.9), 12, 10),
    ),
    "AdamW": (
        Plain("AdamW", {"lr": 0.02, "weight_decay": 0.3}, 11, 5),
        lambda: Steps(AdamW(0.02, weight_decay=0.3), 11, 5),
    ),
    "cosine": (
        Plain("Adam", {"lr": 0.05}, 13, 5, cosine=True),
        lambda: Steps(Adam(0.05), 13, 5, schedule="cosine"),
    ),
    "cold": (Plain("Adam", {"lr": 0.02}, 6, 5, cold=True), lambda: Steps(Adam(0.02), 6, 5, start="cold")),
    "cold, cosine": (
        Plain("SGD", {"lr": 0.2, "momentum": 0.5}, 6, 5, cosine=True, cold=True),
        lambda: Steps(SGD(0.2, 0.5), 6, 5, start="cold", schedule="cosine"),
    ),
}
ELASTIC = BY_NAME["tanh, elastic 0.5"]


def model_of(stage: Any, point: Point) -> nn.Module:
    model = stage.make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(point[name])
    return model


def linear(bias_only: bool = False) -> Chain:
    model = nn.Linear(2, 1).double()
    model.weight.requires_grad_(not bias_only)
    x = torch.linspace(-1, 1, 12).double().reshape(6, 2)
    return Chain(Stage("s", model=model, objective=Regression(), data=TensorDataset(x, x[:, :1])))


class Bare(nn.Module):
    """Its only parameter can be drawn anew by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * self.scale


class Branching(Bare):
    """Reads a value out of a tensor, which one batched model cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if float(self.scale.detach()) > 0 else 1)


def of(model: nn.Module) -> Chain:
    x = torch.linspace(-1, 1, 12).double().reshape(6, 2)
    return Chain(Stage("s", model=model, objective=Regression(), data=TensorDataset(x, x[:, :1] + 0.1)))


def saved(steps: int = 1, shape: tuple[int, ...] = (1, 2), uneven: bool = False) -> dict[str, Any]:
    parameters = [nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(1))]
    optimiser = torch.optim.Adam(parameters)
    for step in range(2 * steps if uneven else steps):
        for parameter in parameters[: 1 if uneven and step else 2]:
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
        optimiser.zero_grad()
    return optimiser.state_dict()


def again(case: ChainCase, position: int, fit: Fit, reduction: Literal["mean", "none"] = "none") -> Retraining:
    chain = chain_of(case, solved(case))
    query, fits = query_of(case, reduction=reduction), dict.fromkeys(chain.names, fit)
    return Retraining(chain, query, chain.names[position], fits)
