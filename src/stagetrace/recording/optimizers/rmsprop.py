"""RMSprop, centred or not, with momentum and weight decay."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.recording.optimizers.rule import Adjoint, State
from stagetrace.recording.optimizers.settings import check_entry, check_options, number, root_slope, sign, slot


@final
class RMSprop:
    """A step of RMSprop, with s = -1 for `maximize` and 1 otherwise:

        (1) G  = s g + decay x
        (2) v' = alpha v + (1 - alpha) G^2
        (3) c' = alpha c + (1 - alpha) G            (centred; c' = 0 otherwise)
        (4) d  = sqrt(v' - c'^2) + eps
        (5) b' = momentum b + G / d                 (b' = G / d without momentum)
        (6) x' = x - lr b'

    Source: Tieleman & Hinton (2012), lecture 6.5; centred: Graves (2013), equations 38 to 41, with PyTorch's eps
        outside the root.
    """

    slots = ("square_avg", "grad_avg", "momentum_buffer")

    def check(self, group: Mapping[str, Any], where: str) -> None:
        known = {"lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize"}
        check_options(torch.optim.RMSprop, known, group, where)

    @torch.no_grad()
    def pull_back(
        self, state: State, gradient: Tensor, group: Mapping[str, Any], after: Adjoint
    ) -> tuple[Adjoint, Tensor]:
        check_entry(state, gradient)
        alpha, decay, momentum = number(group, "alpha"), number(group, "weight_decay"), number(group, "momentum")

        seen = sign(group) * gradient + decay * state.value  # (1)
        square = alpha * slot(state, "square_avg") + (1 - alpha) * seen**2  # (2)
        mean = slot(state, "grad_avg").lerp(seen, 1 - alpha) if group["centered"] else torch.zeros_like(seen)  # (3)
        root = (square - mean**2).sqrt()
        scale = root + number(group, "eps")  # (4)

        before = dict(after.slots)
        ratio_bar = -number(group, "lr") * after.value  # (6)
        if momentum > 0:
            ratio_bar = after.plus("momentum_buffer", ratio_bar)
            before["momentum_buffer"] = momentum * ratio_bar  # (5)
        # (5) d_bar = -G / d^2 b'_bar; (4) (v' - c'^2)_bar = d_bar / (2 sqrt(v' - c'^2))
        variance_bar = -seen / scale / scale * root_slope(root) * ratio_bar
        square_bar = after.plus("square_avg", variance_bar)
        before["square_avg"] = alpha * square_bar  # (2)
        seen_bar = ratio_bar / scale + 2 * (1 - alpha) * seen * square_bar  # (5), (2)
        if group["centered"]:
            mean_bar = after.plus("grad_avg", -2 * mean * variance_bar)  # (4)
            before["grad_avg"] = alpha * mean_bar  # (3)
            seen_bar += (1 - alpha) * mean_bar  # (3)
        return Adjoint(after.value + decay * seen_bar, before), sign(group) * seen_bar  # (1)
