"""A stage with other parameter values."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stagetrace.stages.stage import Stage


def with_values(stage: Stage, values: Mapping[str, Tensor]) -> Stage:
    """The stage over a copy of its model in which the named parameters and buffers have these values."""
    model = copy.deepcopy(stage.model)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in values.items():
            held[name].copy_(value)
    return replace(stage, model=model)
