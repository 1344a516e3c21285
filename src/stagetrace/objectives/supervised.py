"""One prediction per example: classification and regression."""

from dataclasses import dataclass
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import DataError
from stagetrace.objectives.batches import call, targets_of


@final
@dataclass(frozen=True)
class Classification:
    """Cross-entropy of logits `[batch, classes]` against class indices `[batch]` (or probabilities), per example.

    The mean over examples equals `nn.CrossEntropyLoss()`. Unit: nats.

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, 4)
        >>> Classification().losses(logits, (None, torch.tensor([1, 3]))).exp()
        tensor([4., 4.])
    """

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        targets = targets_of(batch)
        if outputs.ndim != 2:
            raise DataError(
                f"Classification needs logits of shape [batch, classes], the model gave {list(outputs.shape)}; "
                "for token labels use MaskedToken or NextToken"
            )
        if targets.shape not in (outputs.shape, outputs.shape[:1]):
            raise DataError(
                "Classification needs class indices of shape [batch] or probabilities [batch, classes], "
                f"got logits {list(outputs.shape)} and targets {list(targets.shape)}"
            )
        return F.cross_entropy(outputs, targets, reduction="none")


@final
@dataclass(frozen=True)
class Regression:
    """Squared error, averaged over an example's outputs.

    The mean over examples equals `nn.MSELoss()`. Unit: that of the target, squared.

    Example:
        >>> import torch
        >>> Regression().losses(torch.tensor([[1.0], [2.0]]), (None, torch.tensor([[1.0], [5.0]])))
        tensor([0., 9.])
    """

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        targets = targets_of(batch)
        if _without_ones(outputs) != _without_ones(targets):
            raise DataError(
                f"Regression needs targets of the outputs' shape (axes of size one aside), got outputs "
                f"{list(outputs.shape)} and targets {list(targets.shape)}"
            )
        errors = (outputs - targets.reshape(outputs.shape)).square()
        return errors.reshape(len(errors), -1).mean(dim=1)


def _without_ones(tensor: Tensor) -> tuple[int, ...]:
    """The shape `[batch, ...]` without an example's axes of size one: `[batch, 1]` and `[batch]` are the same."""
    return (*tensor.shape[:1], *(size for size in tensor.shape[1:] if size != 1))
