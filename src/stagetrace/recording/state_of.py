"""Copies of a training's state."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stagetrace.recording.average import Average
from stagetrace.recording.names import plain_name
from stagetrace.recording.step import State


def state_of(
    model: nn.Module, trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, average: Average | None = None
) -> State:
    """A copy of what is trained, of the model's buffers and of the optimiser's slots, and the average of parameters.

    trained: the parameters by their names.
    """
    values = {name: p.detach().clone() for name, p in trained.items()}
    buffers = {plain_name(name): buffer.detach().clone() for name, buffer in model.named_buffers()}
    return State(values, buffers, slots_of(trained, optimizer), {} if average is None else average.values)


def slots_of(trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """A copy of what the optimiser keeps of each parameter, by the parameter's name."""
    return {name: _copied(optimizer.state[p]) for name, p in trained.items() if optimizer.state.get(p)}


def _copied(slots: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() if isinstance(value, Tensor) else value for name, value in slots.items()}
