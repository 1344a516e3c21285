"""Adagrad, with a decaying rate and weight decay."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.recording.optimizers.rule import Adjoint, State
from stagetrace.recording.optimizers.settings import (
    check_entry,
    check_options,
    number,
    root_slope,
    sign,
    slot,
    step_number,
)


@final
class Adagrad:
    """Step t of Adagrad, with s = -1 for `maximize` and 1 otherwise:

        (1) G  = s g + decay x
        (2) v' = v + G^2                            (v starts at `initial_accumulator_value`)
        (3) d  = sqrt(v') + eps
        (4) x' = x - a G / d,                       a = lr / (1 + (t - 1) lr_decay)

    Source: Duchi, Hazan & Singer (2011), figure 1 with a diagonal matrix.
    """

    slots = ("sum",)

    def check(self, group: Mapping[str, Any], where: str) -> None:
        known = {"lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps", "maximize"}
        check_options(torch.optim.Adagrad, known, group, where)

    @torch.no_grad()
    def pull_back(
        self, state: State, gradient: Tensor, group: Mapping[str, Any], after: Adjoint
    ) -> tuple[Adjoint, Tensor]:
        check_entry(state, gradient)
        decay = number(group, "weight_decay")
        rate = number(group, "lr") / (1 + (step_number(state) - 1) * number(group, "lr_decay"))

        seen = sign(group) * gradient + decay * state.value  # (1)
        root = (slot(state, "sum", number(group, "initial_accumulator_value")) + seen**2).sqrt()  # (2)
        scale = root + number(group, "eps")  # (3)

        # (4) d_bar = a G / d^2 x'_bar; (3) v'_bar += d_bar / (2 sqrt(v'))
        square_bar = after.plus("sum", rate * seen / scale / scale * root_slope(root) * after.value)
        seen_bar = -rate / scale * after.value + 2 * seen * square_bar  # (4), (2)
        return Adjoint(after.value + decay * seen_bar, {"sum": square_bar}), sign(group) * seen_bar  # (1), (2)
