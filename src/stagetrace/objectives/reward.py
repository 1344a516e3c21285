"""Reward models: of two texts one was chosen, and gets the larger number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import BatchError
from stagetrace.objectives.arguments import check_between
from stagetrace.objectives.labels import check_finite_labels
from stagetrace.objectives.pairs import Side, answered, of_both, sides_of


@final
@dataclass(frozen=True)
class Reward:
    """A model that gives each text a number, larger for the chosen of two (Bradley and Terry):
    `-log sigmoid(r(chosen) - r(rejected) - margin) + center (r(chosen) + r(rejected))^2`.

    Outputs `[batch, 2]`: the two rewards. Unit: nats. Batches are dicts of `chosen_input_ids`, `chosen_attention_mask`
    and the same of `rejected`, `[batch, length]` each, or what TRL's collator for a `RewardTrainer` gives; with an
    entry `margin`, `[batch]`, where there is one.

    Args:
        center: TRL's `center_rewards_coefficient`, at least 0.

    Raises:
        DescriptionError: center is no such number.
        BatchError: (from a batch) no pairs; a model that gives a text more than one number.

    Example:
        >>> import torch
        >>> Reward(center=1.0).losses(torch.tensor([[3.0, 3.0]]), {}).round(decimals=3)  # log 2 + 6^2
        tensor([36.6930])

    Source: Ouyang et al. (2022), eq. 1; Eisenstein et al. (2023) for `center`.
    """

    center: float = 0.0

    def __post_init__(self) -> None:
        if self.center:
            check_between("Reward(center=...)", self.center, 0.0, math.inf, "0.01 is usual")

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return of_both(sides_of(batch, "Reward"), lambda side: _reward(model, side))

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        chosen, rejected = outputs.unbind(dim=1)
        margin = batch["margin"].to(outputs) if isinstance(batch, Mapping) and "margin" in batch else 0.0
        losses = -F.logsigmoid(chosen - rejected - margin)
        return losses + self.center * (chosen + rejected).square() if self.center else losses

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse margins that are not finite."""
        del shape
        sides_of(batch, "Reward")
        if "margin" in batch:
            check_finite_labels(torch.as_tensor(batch["margin"]))


def _reward(model: nn.Module, side: Side) -> Tensor:
    found = answered(model, side)
    if found.shape[1:] not in ((), (1,)):
        raise BatchError(
            f"Reward needs one number a text, [rows] or [rows, 1], the model gave {list(found.shape)}; use a "
            "classifier with num_labels=1"
        )
    return found.reshape(len(found))
