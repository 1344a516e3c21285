"""Yes or no: one logit per example, or one for each of its labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import BatchError, refuse
from stagetrace.objectives.batches import check_outputs, target_tensor
from stagetrace.objectives.forward import call
from stagetrace.objectives.labels import check_named, check_zero_to_one, checked_names


@final
@dataclass(frozen=True)
class BinaryClassification:
    """Binary cross-entropy of one logit per example, `[batch]` or `[batch, 1]`, against 0 or 1.

    Labels are `[batch]` or `[batch, 1]`: whole numbers, bools, or floats, which may be probabilities of class 1. The
    mean over examples equals `nn.BCEWithLogitsLoss()`. Unit: nats.

    names: the names of class 0 and class 1, for reports; they change no number.

    Raises:
        DescriptionError: names that are not two different strings.
        BatchError: (from a batch) more than one logit; labels outside 0 to 1.

    Example:
        >>> import torch
        >>> BinaryClassification().losses(torch.zeros(2, 1), (None, torch.tensor([0, 1]))).exp()
        tensor([2., 2.])
    """

    names: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names("BinaryClassification", self.names))
        if len(self.names) not in (0, 2):
            refuse(f"BinaryClassification(names=...) takes two names, of class 0 and of class 1, got {self.names}")

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        targets = target_tensor(batch, "BinaryClassification")
        check_outputs(outputs, targets, "BinaryClassification")
        if outputs.ndim not in (1, 2) or outputs.shape[1:] not in ((), (1,)):
            raise BatchError(
                f"BinaryClassification needs one logit per example, [batch] or [batch, 1], the model gave "
                f"{list(outputs.shape)}; use Classification() for a logit per class, MultiLabel() for one per label"
            )
        if targets.shape[:1] != outputs.shape[:1] or targets.shape[1:] not in ((), (1,)):
            raise BatchError(
                f"BinaryClassification needs labels of shape [batch] or [batch, 1], got logits {list(outputs.shape)} "
                f"and labels {list(targets.shape)}; give one label, 0 or 1, for each example"
            )
        of_one = targets.reshape(outputs.shape).to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, of_one, reduction="none").reshape(len(outputs))

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse labels outside 0 to 1."""
        del shape
        targets = target_tensor(batch, "BinaryClassification")
        check_zero_to_one(targets, "use Classification() and a model with a logit for each class")


@final
@dataclass(frozen=True)
class MultiLabel:
    """Binary cross-entropy of logits `[batch, labels]` against 0 or 1, averaged over an example's labels.

    The mean over examples equals `nn.BCEWithLogitsLoss()`. Unit: nats per label.

    names: the labels' names in the order of the logits, for reports; they change no number.

    Raises:
        DescriptionError: names that are no strings, or repeat.
        BatchError: (from a batch) labels of another shape than the logits, or outside 0 to 1.

    Example:
        >>> import torch
        >>> MultiLabel().losses(torch.zeros(1, 3), {"labels": torch.tensor([[1.0, 0.0, 1.0]])}).exp()
        tensor([2.])
    """

    names: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names("MultiLabel", self.names))

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        targets = target_tensor(batch, "MultiLabel")
        check_outputs(outputs, targets, "MultiLabel")
        if outputs.ndim != 2 or targets.shape != outputs.shape:
            raise BatchError(
                "MultiLabel needs logits and labels of the same shape [batch, labels], "
                f"got {list(outputs.shape)} and {list(targets.shape)}; give 0 or 1 for every label of an example, or "
                "use Classification() for one class per example"
            )
        check_named(self.names, outputs.shape[1], "MultiLabel")
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none").mean(dim=1)

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse labels outside 0 to 1."""
        del shape
        check_zero_to_one(target_tensor(batch, "MultiLabel"), "give 0 or 1 for every label of an example")
