"""SGD with momentum, dampening, Nesterov's variant and weight decay."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.recording.optimizers.rule import Adjoint, State
from stagetrace.recording.optimizers.settings import check_entry, check_options, number, sign


@final
class SGD:
    """A step of SGD, with s = -1 for `maximize` and 1 otherwise:

        (1) G  = s g + decay x
        (2) b' = momentum b + (1 - dampening) G     (b' = G in the first step)
        (3) U  = b', or G + momentum b' (Nesterov), or G (no momentum)
        (4) x' = x - lr U

    Source: Sutskever, Martens, Dahl & Hinton (2013), equations 1 to 4, in PyTorch's form, where the rate is outside b.
    """

    slots = ("momentum_buffer",)

    def check(self, group: Mapping[str, Any], where: str) -> None:
        known = {"lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"}
        check_options(torch.optim.SGD, known, group, where)

    @torch.no_grad()
    def pull_back(
        self, state: State, gradient: Tensor, group: Mapping[str, Any], after: Adjoint
    ) -> tuple[Adjoint, Tensor]:
        check_entry(state, gradient)
        decay, momentum = number(group, "weight_decay"), number(group, "momentum")
        first = state.slots.get("momentum_buffer") is None

        before = after.slots
        seen_bar = -number(group, "lr") * after.value  # (4), and (3) without momentum
        if momentum:
            weight = momentum if group["nesterov"] else 1.0
            buffer_bar = after.plus("momentum_buffer", weight * seen_bar)  # (3)
            part = (1.0 if first else 1 - number(group, "dampening")) * buffer_bar  # (2)
            seen_bar = seen_bar + part if group["nesterov"] else part  # (3)
            before = {} if first else {"momentum_buffer": momentum * buffer_bar}  # (2)
        return Adjoint(after.value + decay * seen_bar, before), sign(group) * seen_bar  # (1)
