"""Optimisers without a closed form here: PyTorch's own step, differentiated by autograd."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature, unwrap
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from stagetrace.recording.optimizers.rule import Adjoint, State
from stagetrace.recording.optimizers.settings import IMPLEMENTATIONS, check_entry


@final
@dataclass(frozen=True)
class Differentiated:
    """The class's own step with `differentiable=True`, pulled back by autograd, all queries in one batch.

    For steps that take no root of what can be 0: autograd has 0 * infinity there.

    optimizer: the class.
    slots: the slots that depend on gradients; all others, step counts say, are constants.
    """

    optimizer: Callable[..., Optimizer]
    slots: tuple[str, ...]

    def check(self, group: Mapping[str, Any], where: str) -> None:
        """Nothing to refuse: every option is the class's own."""

    def pull_back(
        self, state: State, gradient: Tensor, group: Mapping[str, Any], after: Adjoint
    ) -> tuple[Adjoint, Tensor]:
        check_entry(state, gradient)
        options = signature(self.optimizer).parameters.keys() - IMPLEMENTATIONS
        settings = {name: group[name] for name in options if name in group}
        names = [name for name in self.slots if name in state.slots]
        leaves = [state.value, gradient, *(state.slots[name] for name in names)]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            value = leaves[0].clone()  # the step writes in place, which a leaf forbids
            value.grad = leaves[1]
            optimizer = self.optimizer([value], **settings, differentiable=True)
            slots = {name: kept.clone() if isinstance(kept, Tensor) else kept for name, kept in state.slots.items()}
            slots |= {name: leaf.clone() for name, leaf in zip(names, leaves[2:], strict=True)}
            optimizer.state[value].update(slots)
            unwrap(type(optimizer).step)(optimizer)  # without hooks and profiling, which are for real steps
        stepped = optimizer.state[value]
        seen = [name for name in after.slots if stepped[name].requires_grad]
        bars = torch.autograd.grad(
            [value, *(stepped[name] for name in seen)],
            leaves,
            [after.value, *(after.slots[name] for name in seen)],
            is_grads_batched=True,
            materialize_grads=True,
        )
        return Adjoint(bars[0], dict(zip(names, bars[2:], strict=True))), bars[1]
