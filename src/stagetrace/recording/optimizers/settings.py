"""Reading a parameter group and a parameter's slots as PyTorch's optimisers do."""

from collections.abc import Callable, Collection, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stagetrace.errors import refuse
from stagetrace.recording.optimizers.rule import State, require_dense

# Options that choose how a step is computed, not what it computes.
IMPLEMENTATIONS = frozenset({"params", "foreach", "fused", "capturable", "differentiable"})


def number(group: Mapping[str, Any], name: str) -> float:
    """A setting that is a number or a tensor with one element."""
    return float(group[name])


def betas(group: Mapping[str, Any]) -> tuple[float, float]:
    """The decays of the first and second moments."""
    first, second = group["betas"]
    return float(first), float(second)


def sign(group: Mapping[str, Any]) -> float:
    """-1 where the optimiser climbs (`maximize`), else 1."""
    return -1.0 if group.get("maximize", False) else 1.0


def step_number(state: State) -> int:
    """The number of this step of the parameter, from 1."""
    return int(state.slots.get("step", 0)) + 1


def slot(state: State, name: str, start: float = 0.0) -> Tensor:
    """A slot as it was before the step; full of `start` before the first."""
    kept = state.slots.get(name)
    return torch.full_like(state.value, start) if kept is None else kept


def root_slope(root: Tensor) -> Tensor:
    """The slope 1 / (2 sqrt(x)) of the root, from sqrt(x), and 0 where x = 0.

    x sums squares of gradients. It is 0 in an entry whose gradients all were 0, a row of an embedding never seen say.
    The update there is odd in the gradient, `a g / (c |g| + eps)`, with slope `a / eps` at 0: all of it comes from
    the numerator, and what comes through the root tends to 0. (Autograd has 0 * infinity there.)
    """
    return torch.where(root > 0, 0.5 / root, 0.0)


def check_entry(state: State, gradient: Tensor) -> None:
    """Refuse what `require_dense` refuses, in the parameter or its gradient."""
    require_dense(state.value)
    require_dense(gradient, "the gradient")


def check_options(
    optimizer: Callable[..., Optimizer], known: Collection[str], group: Mapping[str, Any], where: str
) -> None:
    """Refuse an option of the class that its rule does not know, unless it is at its default.

    Keys that are no options of the class (what schedulers and users put into a group) have no effect on the step.
    """
    for name, option in signature(optimizer).parameters.items():
        if name in known or name in IMPLEMENTATIONS or name not in group or group[name] == option.default:
            continue
        refuse(
            f"{where}: {optimizer.__name__}({name}={group[name]!r}) has no adjoint; "
            f"train with {name}={option.default!r} instead"
        )
