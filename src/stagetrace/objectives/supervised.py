"""One prediction per example: classification and regression."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import BatchError
from stagetrace.objectives.batches import check_outputs, target_tensor
from stagetrace.objectives.forward import call
from stagetrace.objectives.labels import (
    check_finite_labels,
    check_indices,
    check_named,
    check_probabilities,
    check_whole,
    checked_names,
)


@final
@dataclass(frozen=True)
class Classification:
    """Cross-entropy of logits `[batch, classes]` against class indices `[batch]` (or probabilities), per example.

    The mean over examples equals `nn.CrossEntropyLoss()`. Unit: nats. A model with one logit is a
    `BinaryClassification`; several labels at once are a `MultiLabel`.

    names: the classes' names in the order of the logits, for reports; they change no number.

    Raises:
        DescriptionError: names that are no strings, or repeat.
        BatchError: (from a batch) labels that are no classes: out of range, -100, floats or bools of shape `[batch]`,
            probabilities that do not sum to one.

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, 4)
        >>> Classification().losses(logits, (None, torch.tensor([1, 3]))).exp()
        tensor([4., 4.])
    """

    names: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names("Classification", self.names))

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        targets = target_tensor(batch, "Classification")
        check_outputs(outputs, targets, "Classification")
        if outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1):
            raise BatchError(
                f"Classification needs a logit for each class, the model gave one: {list(outputs.shape)}, of which "
                "every cross-entropy is 0; use BinaryClassification() for one logit and labels 0 or 1, or Regression()"
            )
        if outputs.ndim != 2:
            raise BatchError(
                f"Classification needs logits of shape [batch, classes], the model gave {list(outputs.shape)}; "
                "for token labels use MaskedToken or NextToken"
            )
        check_named(self.names, outputs.shape[1], "Classification")
        if targets.shape not in (outputs.shape, outputs.shape[:1]):
            raise BatchError(
                "Classification needs class indices of shape [batch] or probabilities [batch, classes], "
                f"got logits {list(outputs.shape)} and targets {list(targets.shape)}{_how(outputs, targets)}"
            )
        if targets.ndim == 1:
            check_whole(targets, "class indices")
            return F.cross_entropy(outputs, targets.long(), reduction="none")
        if not targets.is_floating_point():
            raise BatchError(
                "labels of shape [batch, classes] are read as probabilities and must be floats; for classes marked "
                "by a one give labels.argmax(dim=1), for several labels at once use MultiLabel()"
            )
        return F.cross_entropy(outputs, targets.to(outputs.dtype), reduction="none")

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse labels that are no classes; `shape` is that of an example's outputs, `[classes]`."""
        targets = target_tensor(batch, "Classification")
        if len(shape) != 1 or shape[0] == 1:
            return  # the shapes are wrong, not the labels
        if targets.ndim == 1:
            check_whole(targets, "class indices")
            check_indices(targets, shape[0], "the label", ignored=False)
        elif targets.is_floating_point() and targets.shape[1:] == (*shape,):
            check_probabilities(targets)


@final
@dataclass(frozen=True)
class Regression:
    """Squared error, averaged over an example's outputs.

    The mean over examples equals `nn.MSELoss()`. Unit: that of the target, squared. Targets of whole numbers are taken
    as the floating-point numbers they are.

    Raises:
        BatchError: (from a batch) targets of another shape than the outputs, NaN, infinite or complex.

    Example:
        >>> import torch
        >>> Regression().losses(torch.tensor([[1.0], [2.0]]), (None, torch.tensor([[1.0], [5.0]])))
        tensor([0., 9.])
    """

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        targets = target_tensor(batch, "Regression")
        check_outputs(outputs, targets, "Regression")
        if _without_ones(outputs) != _without_ones(targets):
            raise BatchError(
                f"Regression needs targets of the outputs' shape (axes of size one aside), got outputs "
                f"{list(outputs.shape)} and targets {list(targets.shape)}{_how(outputs, targets)}"
            )
        errors = (outputs - targets.reshape(outputs.shape).to(outputs.dtype)).square()
        return errors.reshape(len(errors), -1).mean(dim=1)

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse targets that are not finite."""
        del shape
        check_finite_labels(target_tensor(batch, "Regression"))


def _how(outputs: Tensor, targets: Tensor) -> str:
    """What to do about two shapes, where it can be told."""
    if targets.ndim == 2 and targets.shape[1] == 1 and targets.shape[:1] == outputs.shape[:1]:
        return "; give labels.squeeze(1)"
    if targets.ndim and outputs.shape[:1] != targets.shape[:1]:
        return f"; the model must give one row for each of the {len(targets)} examples (is it squeezed or repeated?)"
    return "; give targets of that shape from the data set, or by collate="


def _without_ones(tensor: Tensor) -> tuple[int, ...]:
    """The shape `[batch, ...]` without an example's axes of size one: `[batch, 1]` and `[batch]` are the same."""
    return (*tensor.shape[:1], *(size for size in tensor.shape[1:] if size != 1))
