"""Optimisers that step by a mean of gradients over the root of a mean of their squares: Adam and its kin."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from stagetrace.recording.optimizers.rule import Adjoint, State
from stagetrace.recording.optimizers.settings import (
    betas,
    check_entry,
    check_options,
    number,
    root_slope,
    sign,
    slot,
)


@dataclass(frozen=True)
class Weights:
    """The numbers of (5) and (6) that set the members of the family apart; they hang on the step's number alone."""

    mean: float
    root: float
    eps: float
    gradient: float = 0.0


@final
@dataclass(frozen=True)
class Moments:
    """One step, with s = -1 for `maximize` and 1 otherwise, and four numbers p, r, q, e of the class:

        (1) G  = s g + decay x                      (L2; G = s g with decoupled decay)
        (2) m' = beta1 m + (1 - beta1) G
        (3) v' = beta2 v + (1 - beta2) G^2
        (4) u' = max(u, v')                         (AMSGrad; u' = v' without)
        (5) d  = q sqrt(u') + e
        (6) x' = k x - (p G + r m') / d             (k = 1 - lr decay with decoupled decay, else 1)

    optimizer: PyTorch's class.
    weights: p, r, q and e (`gradient`, `mean`, `root`, `eps`) of a step.
    decoupled: the decay of a group that does not say which it is (AdamW before PyTorch 2.7).

    Where u and v' tie, the maximum counts as v'.

    Source: AMSGrad: Reddi, Kale & Kumar (2018), algorithm 2, as PyTorch corrects its bias; decoupled decay: Loshchilov
        & Hutter (2019), algorithm 2, with PyTorch's `lr * decay`; the rest beside each class's weights.
    """

    optimizer: type[Optimizer]
    weights: Callable[[State, Mapping[str, Any]], Weights]
    decoupled: bool = False
    slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def check(self, group: Mapping[str, Any], where: str) -> None:
        known = {"lr", "betas", "eps", "weight_decay", "momentum_decay"}
        check_options(self.optimizer, known | {"amsgrad", "maximize", "decoupled_weight_decay"}, group, where)

    @torch.no_grad()
    def pull_back(
        self, state: State, gradient: Tensor, group: Mapping[str, Any], after: Adjoint
    ) -> tuple[Adjoint, Tensor]:
        check_entry(state, gradient)
        weights, (beta1, beta2), decay = self.weights(state, group), betas(group), number(group, "weight_decay")
        decoupled = bool(group.get("decoupled_weight_decay", self.decoupled))
        amsgrad = bool(group.get("amsgrad", False))

        # each line makes one tensor of the parameter's size at most: a large one takes longer to fill than to compute
        seen = gradient if sign(group) == 1 else -gradient
        if decay and not decoupled:
            seen = seen.add(state.value, alpha=decay)  # (1)
        mean = slot(state, "exp_avg").lerp(seen, 1 - beta1)  # (2)
        square = (beta2 * slot(state, "exp_avg_sq")).addcmul_(seen, seen, value=1 - beta2)  # (3)
        root = (slot(state, "max_exp_avg_sq").maximum(square) if amsgrad else square).sqrt()  # (4)
        over = (weights.root * root).add_(weights.eps).reciprocal_()  # (5) 1 / d

        # (6) m'_bar += -r / d x'_bar, d_bar = (p G + r m') / d^2 x'_bar; (5) u'_bar += q d_bar / (2 sqrt(u'))
        direction = mean * weights.mean
        if weights.gradient:
            direction.add_(seen, alpha=weights.gradient)
        scaled = after.value * over
        mean_bar = after.plus("exp_avg", -weights.mean * scaled)
        slope_bar = (scaled * over).mul_(direction).mul_(weights.root)
        square_bar = slope_bar.mul_(root_slope(root))
        before = dict(after.slots)
        if amsgrad:
            # (4) u'_bar goes to v' where v' is the larger, else to u
            largest_bar = after.plus("max_exp_avg_sq", square_bar)
            taken = square >= slot(state, "max_exp_avg_sq")
            square_bar = torch.where(taken, largest_bar, 0.0)
            before["max_exp_avg_sq"] = torch.where(taken, 0.0, largest_bar)
        square_bar = after.plus("exp_avg_sq", square_bar)
        before |= {"exp_avg": beta1 * mean_bar, "exp_avg_sq": beta2 * square_bar}  # (2), (3)

        seen_bar = ((1 - beta1) * mean_bar).addcmul_(seen, square_bar, value=2 * (1 - beta2))  # (2), (3)
        if weights.gradient:
            seen_bar.sub_(scaled, alpha=weights.gradient)  # (6)
        kept = 1 - number(group, "lr") * decay
        value_bar = kept * after.value if decoupled else after.value.add(seen_bar, alpha=decay)  # (6), (1)
        return Adjoint(value_bar, before), seen_bar if sign(group) == 1 else -seen_bar
