"""One step of an optimiser, for several copies at once."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.stages.space import ParameterSpace


class Moment(Protocol):
    """The state of a rule while it runs."""

    def step(self, point: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """The next point `[copies, size]`; rate: of this step."""
        ...


class Rule(ABC):
    """An optimiser's settings."""

    rate: float

    @abstractmethod
    def begin(self, copies: int, space: ParameterSpace, device_like: Tensor) -> Moment:
        """The state before the first step."""


@final
@dataclass(frozen=True)
class Adam(Rule):
    """Adam (Kingma & Ba 2015), as `torch.optim.Adam`; weight decay is part of the stage's loss, not of the rule.

    Args:
        rate: the learning rate.
        betas, eps: as in PyTorch.
        state: `optimizer.state_dict()` of the training that is continued, its parameters in the order of the stage's
            own ones (parameters that it never moved may be among them). Without it the moments start at zero, and the
            first steps move every parameter by the whole rate, whatever its gradient: effects measured so agree
            little between orders of the batches.
    """

    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    state: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_rate("Adam", self.rate)

    def begin(self, copies: int, space: ParameterSpace, device_like: Tensor) -> Moment:
        if self.state is None:
            zero = torch.zeros(copies, space.size).to(device_like)
            return _AdamMoment(self, zero, zero.clone(), 0)
        entries = _entries(self.state, space)
        first, second = (
            torch.cat([entry[key].reshape(-1) for entry in entries]).to(device_like).expand(copies, -1).clone()
            for key in ("exp_avg", "exp_avg_sq")
        )
        return _AdamMoment(self, first, second, int(entries[0]["step"]))


@final
class _AdamMoment:
    def __init__(self, rule: Adam, first: Tensor, second: Tensor, steps: int) -> None:
        self.rule, self.first, self.second, self.steps = rule, first, second, steps

    def step(self, point: Tensor, gradient: Tensor, rate: float) -> Tensor:
        one, two = self.rule.betas
        self.steps += 1
        self.first = one * self.first + (1 - one) * gradient
        self.second = two * self.second + (1 - two) * gradient.square()
        scale = (self.second / (1 - two**self.steps)).sqrt() + self.rule.eps
        return point - rate / (1 - one**self.steps) * self.first / scale


@final
@dataclass(frozen=True)
class SGD(Rule):
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`."""

    rate: float = 0.1
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check_rate("SGD", self.rate)
        if not 0 <= self.momentum < 1:
            refuse(f"SGD: momentum must be from 0 to below 1, got {self.momentum!r}")

    def begin(self, copies: int, space: ParameterSpace, device_like: Tensor) -> Moment:
        return _SGDMoment(self, torch.zeros(copies, space.size).to(device_like))


@final
class _SGDMoment:
    def __init__(self, rule: SGD, velocity: Tensor) -> None:
        self.rule, self.velocity = rule, velocity

    def step(self, point: Tensor, gradient: Tensor, rate: float) -> Tensor:
        self.velocity = self.rule.momentum * self.velocity + gradient
        return point - rate * self.velocity


def _entries(state: Mapping[str, Any], space: ParameterSpace) -> list[Mapping[str, Any]]:
    """The saved moments in the order of the own parameters."""
    try:
        order = [number for group in state["param_groups"] for number in group["params"]]
        entries = [state["state"][number] for number in order if number in state["state"]]  # others were never moved
        moments = [(entry["exp_avg"], entry["exp_avg_sq"]) for entry in entries]
        shapes = [tuple(first.shape) for first, _ in moments]
        steps = {int(entry["step"]) for entry in entries}
        if not entries:
            raise KeyError("exp_avg")
    except (KeyError, TypeError, AttributeError) as cause:
        refuse(f"Adam: state must be the state_dict() of a torch.optim.Adam that took steps ({cause!r} is missing)")
    expected = [tuple(shape) for shape in space.shapes]
    if shapes != expected:
        refuse(
            f"Adam: the saved state has parameters of the shapes {shapes}, but the stage trained {expected} "
            f"({', '.join(space.names)}); pass the state of the optimiser that trained this stage"
        )
    if len(steps) > 1:
        refuse(f"Adam: the saved state has parameters that took {sorted(steps)} steps; they must have taken as many")
    return entries


def _check_rate(what: str, rate: float) -> None:
    if not (isinstance(rate, (int, float)) and 0 < rate < float("inf")):
        refuse(f"{what}: rate must be a number above 0, such as 1e-3, got {rate!r}")
