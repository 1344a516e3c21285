"""A small model, one stage or two made of it, and what the checks find."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Direct, Hessian, Proximal, Query, Stage, trace
from stagetrace.checks import Finding, verify_stage
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
