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

    All in the CPU's memory. trained: the parameters by their names.
    """
    values = {name: _copy(p) for name, p in trained.items()}
    buffers = {plain_name(name): _copy(buffer) for name, buffer in model.named_buffers()}
    return State(values, buffers, slots_of(trained, optimizer), {} if average is None else average.values)


def slots_of(trained: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """A copy of what the optimiser keeps of each parameter, by the parameter's name."""
    return {
        name: {slot: _copy(value) if isinstance(value, Tensor) else value for slot, value in slots.items()}
        for name, p in trained.items()
        if (slots := optimizer.state.get(p))
    }


def _copy(tensor: Tensor) -> Tensor:
    """In memory of its own and in one piece, as files want it."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
