"""Which optimiser trains a stage again: settings from which a `torch.optim` one is built, over several copies at once.

The copies are one tensor `[copies, size]`. The optimisers work entry by entry, so each copy is trained as it would be
alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.renamed import renamed_fields
from stagetrace.stages.space import ParameterSpace


class OptimizerSettings(ABC):
    """An optimiser's settings; the stage's `weight_decay` is part of its loss and not among them."""

    lr: float
    state: Mapping[str, Any] | None = None

    @abstractmethod
    def made(self, parameters: Sequence[Tensor], decay: float = 0.0) -> torch.optim.Optimizer:
        """The optimiser of these parameters, without a state. decay: of the stage's loss, `decay / 2 |parameters|^2`.

        Raises:
            DescriptionError: the optimiser cannot add that to its gradient.
        """

    def build(self, point: Tensor, space: ParameterSpace) -> torch.optim.Optimizer:
        """The optimiser of `point` `[copies, size]`, before its first step; a saved state is every copy's."""
        optimizer = self.made([point])
        if self.state is not None:
            entries = _entries(type(self).__name__, self.state, space)
            moments = {
                key: torch.cat([entry[key].reshape(-1) for entry in entries]).to(point).expand_as(point).clone()
                for key in ("exp_avg", "exp_avg_sq")
            }
            optimizer.state[point] = {"step": torch.tensor(float(entries[0]["step"])), **moments}
        return optimizer

    def alone(
        self, parameters: Sequence[Tensor], space: ParameterSpace, decays: Sequence[float]
    ) -> torch.optim.Optimizer:
        """The optimiser of one copy, its parameters each for itself; decays: as in `made`, of each parameter."""
        optimizer = self.made(parameters, max(decays))
        if len(set(decays)) > 1:  # a group for each
            (group,) = optimizer.param_groups
            each = zip(parameters, decays, strict=True)
            optimizer.param_groups[:] = [{**group, "params": [one], "weight_decay": decay} for one, decay in each]
        entries = [] if self.state is None else _entries(type(self).__name__, self.state, space)
        for parameter, entry in zip(parameters, entries, strict=bool(entries)):
            moments = {key: entry[key].to(parameter).clone() for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(entry["step"])), **moments}
        return optimizer


@final
@renamed_fields(rate="lr")
@dataclass(frozen=True)
class Adam(OptimizerSettings):
    """`torch.optim.Adam` (Kingma & Ba 2015).

    Args:
        lr: the learning rate.
        betas, eps: as in PyTorch.
        state: `optimizer.state_dict()` of the training that is continued, its parameters in the order of the stage's
            trained ones (parameters that it never changed may be among them). Without it the moments start at zero,
            and the first steps change every parameter by `lr`, whatever its gradient: effects measured that way vary
            with the order of the batches.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    state: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_lr("Adam", self.lr)

    def made(self, parameters: Sequence[Tensor], decay: float = 0.0) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=decay)


@final
@dataclass(frozen=True)
class AdamW(OptimizerSettings):
    """`torch.optim.AdamW` (Loshchilov & Hutter 2019).

    Args:
        lr, betas, eps, state: as for `Adam`.
        weight_decay: decoupled from the gradient: each step multiplies the parameters by `1 - lr * weight_decay`. It is
            not part of any loss, so scores ignore it; the stage's own `weight_decay` is added to the loss.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    state: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_lr("AdamW", self.lr)
        if not (isinstance(self.weight_decay, (int, float)) and 0 <= self.weight_decay < float("inf")):
            refuse(f"AdamW: weight_decay must be a number of at least 0, such as 0.01, got {self.weight_decay!r}")

    def made(self, parameters: Sequence[Tensor], decay: float = 0.0) -> torch.optim.Optimizer:
        if decay:
            refuse(
                "AdamW adds no weight decay of the loss to its gradient; set the stage's weight_decay to 0, or use Adam"
            )
        return torch.optim.AdamW(parameters, self.lr, self.betas, self.eps, self.weight_decay)


@final
@renamed_fields(rate="lr")
@dataclass(frozen=True)
class SGD(OptimizerSettings):
    """`torch.optim.SGD`: stochastic gradient descent with momentum."""

    lr: float = 0.1
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check_lr("SGD", self.lr)
        if not 0 <= self.momentum < 1:
            refuse(f"SGD: momentum must be from 0 to below 1, got {self.momentum!r}")

    def made(self, parameters: Sequence[Tensor], decay: float = 0.0) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=decay)


def _entries(name: str, state: Mapping[str, Any], space: ParameterSpace) -> list[Mapping[str, Any]]:
    """The saved moments in the order of the trained parameters."""
    try:
        order = [number for group in state["param_groups"] for number in group["params"]]
        entries = [state["state"][number] for number in order if number in state["state"]]  # others were never changed
        moments = [(entry["exp_avg"], entry["exp_avg_sq"]) for entry in entries]
        shapes = [tuple(first.shape) for first, _ in moments]
        steps = {int(entry["step"]) for entry in entries}
        if not entries:
            raise KeyError("exp_avg")
    except (KeyError, TypeError, AttributeError) as cause:
        refuse(f"{name}: state must be the state_dict() of a torch.optim.{name} that took steps ({cause!r} is missing)")
    expected = [tuple(shape) for shape in space.shapes]
    if shapes != expected:
        refuse(
            f"{name}: the saved state has parameters of the shapes {shapes}, but the stage trained {expected} "
            f"({', '.join(space.names)}); pass the state of the optimiser that trained this stage"
        )
    if len(steps) > 1:
        refuse(f"{name}: the saved state has parameters that took {sorted(steps)} steps; they must have taken as many")
    return entries


def _check_lr(what: str, lr: float) -> None:
    if not (isinstance(lr, (int, float)) and 0 < lr < float("inf")):
        refuse(f"{what}: lr must be a number above 0, such as 1e-3, got {lr!r}")
