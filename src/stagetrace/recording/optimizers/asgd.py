"""ASGD: steps of SGD at a falling rate, and the running mean of where they led."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.recording.optimizers.rule import Adjoint, State
from stagetrace.recording.optimizers.settings import check_entry, check_options, number, sign


@final
class ASGD:
    """A step of ASGD, with s = -1 for `maximize` and 1 otherwise:

        (1) G  = s g + decay x
        (2) x' = (1 - lambd eta) x - eta G
        (3) a' = a + mu (x' - a)

    The rate eta and the weight mu are slots that count steps: constants here.

    Source: Polyak & Juditsky (1992), equation 3, with the rates of Xu (2011), section 5.
    """

    slots = ("ax",)

    def check(self, group: Mapping[str, Any], where: str) -> None:
        known = {"lr", "lambd", "alpha", "t0", "weight_decay", "maximize"}
        check_options(torch.optim.ASGD, known, group, where)

    @torch.no_grad()
    def pull_back(
        self, state: State, gradient: Tensor, group: Mapping[str, Any], after: Adjoint
    ) -> tuple[Adjoint, Tensor]:
        check_entry(state, gradient)
        eta, mu = float(state.slots.get("eta", group["lr"])), float(state.slots.get("mu", 1.0))

        value_bar, before = after.value, after.slots
        if "ax" in after.slots:
            value_bar = value_bar + mu * after.slots["ax"]  # (3)
            before = {"ax": (1 - mu) * after.slots["ax"]}  # (3)
        seen_bar = -eta * value_bar  # (2)
        kept = 1 - number(group, "lambd") * eta
        return Adjoint(kept * value_bar + number(group, "weight_decay") * seen_bar, before), sign(group) * seen_bar
