"""Losses of tokens as a Trainer adds them up: every token weighs the same, or labels are smoothed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import BatchError, refuse
from stagetrace.objectives import MaskedToken, NextToken, Objective, Seq2Seq
from stagetrace.objectives.batches import targets_of
from stagetrace.objectives.forward import call
from stagetrace.objectives.objective import Checks, CountsLabels, by_token
from stagetrace.objectives.tokens import IGNORED, cross_entropies, following


@final
@dataclass(frozen=True)
class PerToken:
    """The sum of an example's token losses over the mean number of tokens: every token of the data weighs the same.

    The mean over the examples is then the loss of all tokens divided by their number, which is what a trainer minimises
    that divides a batch's summed loss by its tokens. Unit: nats per token, so that damping, weight decay and `alpha`
    mean what they mean for means over sentences.

    Args:
        objective: the summed loss, e.g. `NextToken(reduction="sum")`.
        tokens: the mean number of predicted tokens of an example, above 0.

    Raises:
        DescriptionError: tokens is no positive number.
    """

    objective: Objective
    tokens: float

    def __post_init__(self) -> None:
        if not (isinstance(self.tokens, (int, float)) and 0 < self.tokens < math.inf):
            refuse(f"PerToken(tokens=...) must be a positive number, an example's mean, got {self.tokens!r}")

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return self.objective.outputs(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return self.objective.losses(outputs, batch) / self.tokens

    def token_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        """Each predicted token's term of its example's loss, `[batch, length]`."""
        return by_token(self.objective).token_losses(outputs, batch) / self.tokens

    def predicted(self, batch: Any) -> Tensor:
        """The labels that are predicted, `[batch, length]`."""
        return by_token(self.objective).predicted(batch)

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse labels that the summed loss refuses."""
        if isinstance(self.objective, Checks):
            self.objective.check(batch, shape)

    def labelled(self, batch: Any) -> int:
        """How many tokens of the batch are predicted."""
        return self.objective.labelled(batch) if isinstance(self.objective, CountsLabels) else len(targets_of(batch))


@final
@dataclass(frozen=True)
class Smoothed:
    """Cross-entropy against labels of which a share is spread over all classes (Szegedy et al. 2016, section 7).

    For one label per example (logits `[batch, classes]`) and for one per token (`[batch, length, classes]`), of which
    those with the label -100 are left out. Unit: nats, per token with `reduction="mean"`.

    Args:
        factor: the share, at least 0 and below 1.
        shifted: whether a token's logits predict the next one.
        reduction: over an example's tokens.

    Example:
        >>> import torch
        >>> Smoothed(0.1).losses(torch.zeros(1, 4), {"labels": torch.tensor([2])}).exp().round()
        tensor([4.])
    """

    factor: float
    shifted: bool = False
    reduction: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        if not (isinstance(self.factor, (int, float)) and 0 <= self.factor < 1):
            refuse(f"Smoothed(factor=...) must be at least 0 and below 1, got {self.factor!r}; 0.1 is usual")

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        labels = targets_of(batch)
        if outputs.ndim == 2:
            return F.cross_entropy(outputs, labels, reduction="none", label_smoothing=self.factor)
        return self.token_losses(outputs, batch).sum(dim=1)

    def token_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        """Each labelled token's term of its example's loss, `[batch, length]`, at the token's own position."""
        labels = targets_of(batch)
        if outputs.ndim == 2:
            raise BatchError("labels are one for each example, not one for each token, so there are no token losses")
        labels = following(labels) if self.shifted else labels
        each = cross_entropies(outputs, labels, self.factor)
        each = each if self.reduction == "sum" else each / (labels != IGNORED).sum(dim=1, keepdim=True).clamp_min(1)
        return F.pad(each[:, :-1], (1, 0)) if self.shifted else each

    def predicted(self, batch: Any) -> Tensor:
        """The labels that are predicted, at their tokens' own positions."""
        labels = targets_of(batch)
        return F.pad(labels[:, 1:], (1, 0), value=IGNORED) if self.shifted else labels

    def labelled(self, batch: Any) -> int:
        """How many labels of the batch are predicted."""
        labels = targets_of(batch)
        return int(((labels[:, 1:] if self.shifted else labels) != IGNORED).sum())


SUMMED = (NextToken, MaskedToken, Seq2Seq, Smoothed)
"""Ready-made losses of tokens, with a `reduction` over an example's own."""


def mean_of_own_tokens(objective: Any) -> Objective | None:
    """The loss of an example that stands alone, as those of a query do: the mean over its own tokens.

    None where that is what the objective has, or where it is none of the ready-made losses of tokens.
    """
    held = objective.objective if isinstance(objective, PerToken) else objective
    if isinstance(held, SUMMED) and held.reduction == "sum":
        return replace(held, reduction="mean")
    return held if isinstance(objective, PerToken) else None
