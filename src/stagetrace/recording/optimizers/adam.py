"""Adam and AdamW, with L2 or decoupled weight decay, with or without AMSGrad."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.recording.optimizers.rule import Adjoint, State
from stagetrace.recording.optimizers.settings import (
    betas,
    check_entry,
    check_options,
    number,
    root_slope,
    sign,
    slot,
    step_number,
)


@final
@dataclass(frozen=True)
class Adam:
    """Step t of Adam, with s = -1 for `maximize` and 1 otherwise:

        (1) G  = s g + decay x                      (L2; G = s g with decoupled decay)
        (2) m' = beta1 m + (1 - beta1) G
        (3) v' = beta2 v + (1 - beta2) G^2
        (4) u' = max(u, v')                         (AMSGrad; u' = v' without)
        (5) d  = sqrt(u') / c + eps,                c = sqrt(1 - beta2^t)
        (6) x' = (1 - lr decay) x - a m' / d,       a = lr / (1 - beta1^t)

    The factor 1 - lr decay of (6) stands for decoupled decay only.

    decoupled: the decay of a group that does not say which it is (AdamW before PyTorch 2.7).

    Where u and v' tie, the maximum counts as v'.

    Source: Kingma & Ba (2015), algorithm 1; AMSGrad: Reddi, Kale & Kumar (2018), algorithm 2, with PyTorch's bias
        correction; decoupled decay: Loshchilov & Hutter (2019), algorithm 2, with PyTorch's `lr * decay`.
    """

    slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    decoupled: bool = False

    def check(self, group: Mapping[str, Any], where: str) -> None:
        known = {"lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay"}
        check_options(torch.optim.AdamW if self.decoupled else torch.optim.Adam, known, group, where)

    @torch.no_grad()
    def pull_back(
        self, state: State, gradient: Tensor, group: Mapping[str, Any], after: Adjoint
    ) -> tuple[Adjoint, Tensor]:
        check_entry(state, gradient)
        lr, (beta1, beta2), decay = number(group, "lr"), betas(group), number(group, "weight_decay")
        decoupled = bool(group.get("decoupled_weight_decay", self.decoupled))
        step = step_number(state)
        rate, correction = lr / (1 - beta1**step), (1 - beta2**step) ** 0.5

        seen = sign(group) * gradient if decoupled else sign(group) * gradient + decay * state.value  # (1)
        mean = slot(state, "exp_avg").lerp(seen, 1 - beta1)  # (2)
        square = beta2 * slot(state, "exp_avg_sq") + (1 - beta2) * seen**2  # (3)
        largest = slot(state, "max_exp_avg_sq").maximum(square) if group["amsgrad"] else square  # (4)
        root = largest.sqrt()
        scale = root / correction + number(group, "eps")  # (5)

        # (6) m'_bar += -a / d x'_bar, d_bar = a m' / d^2 x'_bar; (5) u'_bar += d_bar / (2 c sqrt(u'))
        mean_bar = after.plus("exp_avg", -rate / scale * after.value)
        square_bar = rate / correction * mean / scale / scale * root_slope(root) * after.value
        before = dict(after.slots)
        if group["amsgrad"]:
            # (4) u'_bar goes to v' where v' is the larger, else to u
            largest_bar = after.plus("max_exp_avg_sq", square_bar)
            taken = square >= slot(state, "max_exp_avg_sq")
            square_bar = torch.where(taken, largest_bar, 0.0)
            before["max_exp_avg_sq"] = torch.where(taken, 0.0, largest_bar)
        square_bar = after.plus("exp_avg_sq", square_bar)

        seen_bar = (1 - beta1) * mean_bar + 2 * (1 - beta2) * seen * square_bar  # (2), (3)
        before |= {"exp_avg": beta1 * mean_bar, "exp_avg_sq": beta2 * square_bar}  # (2), (3)
        value_bar = (1 - lr * decay) * after.value if decoupled else after.value + decay * seen_bar  # (6), (1)
        return Adjoint(value_bar, before), sign(group) * seen_bar
