"""What labels must be before a loss takes them: looked at once for each batch that is read, outside every derivative.

PyTorch checks some of it while it computes a loss, in words of its own and on the CPU only; the rest (a label that is
NaN, the mark -100 of an ignored one) gives a number that is no loss of the example.
"""

import torch
from torch import Tensor

from stagetrace.errors import BatchError, refuse
from stagetrace.objectives.batches import dtype_of

IGNORED = -100
"""The label that marks a token as not predicted, as in PyTorch and Hugging Face."""

SUM_OFF = 1e-3
"""How far from 1 an example's probabilities may sum: rounding in single precision, over many classes too."""

SUM_OFF_IN_HALF = 1e-2


def first_with(wrong: Tensor) -> int | None:
    """The place in the batch of the first example that has a True: `wrong` is `[batch, ...]`."""
    if not bool(wrong.any()):
        return None
    return int(wrong.reshape(len(wrong), -1).any(dim=1).nonzero()[0, 0])


def check_whole(labels: Tensor, what: str) -> None:
    """Refuse labels that are no whole numbers by their type.

    Raises:
        BatchError: they are floating-point numbers or bools.
    """
    if labels.is_floating_point():
        raise BatchError(f"{what} must be whole numbers, got {dtype_of(labels)}; give labels.long()")
    if labels.dtype == torch.bool:
        raise BatchError(f"{what} must be whole numbers, got bool; give labels.long()")


def check_indices(labels: Tensor, classes: int, what: str, *, ignored: bool) -> None:
    """Refuse class indices outside `0 ... classes - 1`; with `ignored`, -100 is one that is not predicted.

    Raises:
        BatchError: with the place of the first such example.
    """
    whole = labels.long()
    wrong = (whole < 0) | (whole >= classes)
    if ignored:
        wrong &= whole != IGNORED
    position = first_with(wrong)
    if position is None:
        return
    value = int(whole[position][wrong[position]].reshape(-1)[0])
    message = f"{what} is {value}, but the model gives {classes} logits, so labels are 0 to {classes - 1}"
    message += f", or {IGNORED} where nothing is predicted" if ignored else ""
    if value == IGNORED:
        message += f"; {IGNORED} marks what is not to be predicted: leave these examples out of the data set"
    elif value < 0:
        message += "; leave out examples without a label, or number the classes from 0"
    elif value == classes and not bool((whole == 0).any()):
        message += "; number the classes from 0 (labels - 1), or give the model another output"
    else:
        message += "; correct the label, or give the model as many outputs as there are classes"
    raise BatchError(message, position)


def check_probabilities(labels: Tensor) -> None:
    """Refuse probabilities `[batch, classes]` that are negative, NaN or do not sum to one.

    Raises:
        BatchError: with the place of the first such example.
    """
    values = labels.double()
    sums = values.sum(dim=1)
    allowed = SUM_OFF_IN_HALF if labels.dtype in (torch.float16, torch.bfloat16) else SUM_OFF
    position = first_with(~((sums - 1).abs() <= allowed) | ~(values >= 0).all(dim=1))
    if position is None:
        return
    row = values[position]
    if bool(row.isnan().any()):
        message = "the label has NaN among its probabilities; correct the label or leave the example out"
    elif bool((row < 0).any()):
        message = f"the label has the probability {float(row.min()):.6g}; give probabilities of at least 0"
    else:
        message = f"the probabilities of the label sum to {float(row.sum()):.6g}, not to 1; divide them by their sum"
    raise BatchError(f"{message}. For several labels at once use MultiLabel()", position)


def check_finite_labels(labels: Tensor) -> None:
    """Refuse NaN and infinite targets.

    Raises:
        BatchError: with the place of the first such example.
    """
    if not labels.is_floating_point():
        return
    position = first_with(~torch.isfinite(labels))
    if position is not None:
        row = labels[position]
        value = float(row[~torch.isfinite(row)].reshape(-1)[0])
        raise BatchError(f"the target is {value}; correct it or leave the example out of the data set", position)


def check_zero_to_one(labels: Tensor, otherwise: str) -> None:
    """Refuse labels of yes or no (or their probabilities) outside 0 to 1.

    Raises:
        BatchError: with the place of the first such example; ends with what to use instead.
    """
    if labels.dtype == torch.bool:
        return
    position = first_with(~((labels >= 0) & (labels <= 1)))
    if position is None:
        return
    row = labels[position].double()
    value = float(row[~((row >= 0) & (row <= 1))].reshape(-1)[0])
    if value == IGNORED:
        remedy = f"{IGNORED} marks what is not to be predicted: leave these examples out of the data set"
    elif value == -1 and bool((labels.abs() == 1).all()):
        remedy = "map -1 and 1 to 0 and 1: (labels + 1) / 2"
    elif value != value:
        remedy = "correct it or leave the example out of the data set"
    else:
        remedy = otherwise
    raise BatchError(f"the label is {value:g}, and must be 0, 1 or a probability between them; {remedy}", position)


def checked_names(objective: str, names: object) -> tuple[str, ...]:
    """Class names as a tuple of different strings.

    Raises:
        DescriptionError: they are none.
    """
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        if len(set(names)) < len(names):
            refuse(f"{objective}(names=...) has a name twice: {list(names)}")
        return tuple(names)
    refuse(f"{objective}(names=...) must be a tuple of strings, one a class, got {names!r}")


def check_named(names: tuple[str, ...], classes: int, objective: str) -> None:
    """Refuse class names that are not as many as the classes.

    Raises:
        BatchError: with both numbers.
    """
    if names and len(names) != classes:
        raise BatchError(f"{objective}(names=...) has {len(names)} names, but the model gives {classes} logits")
