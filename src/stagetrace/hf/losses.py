"""The loss that transformers gives several labels per example."""

from dataclasses import dataclass
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import DataError
from stagetrace.objectives.batches import call, targets_of


@final
@dataclass(frozen=True)
class MultiLabel:
    """Binary cross-entropy of logits `[batch, labels]` against 0 or 1, averaged over an example's labels.

    The mean over examples equals `nn.BCEWithLogitsLoss()`. Unit: nats per label.

    Example:
        >>> import torch
        >>> MultiLabel().losses(torch.zeros(1, 3), {"labels": torch.tensor([[1.0, 0.0, 1.0]])}).exp()
        tensor([2.])
    """

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        targets = targets_of(batch)
        if outputs.ndim != 2 or targets.shape != outputs.shape:
            raise DataError(
                "MultiLabel needs logits and labels of the same shape [batch, labels], "
                f"got {list(outputs.shape)} and {list(targets.shape)}"
            )
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none").mean(dim=1)
