"""How the ready-made objectives read a batch: `(inputs, targets)` tuples and Hugging Face dict batches alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stagetrace.errors import BatchError

LABELS = ("labels", "label", "target", "targets")

BY_HAND = "write the loss as a function losses(model, batch)"


def targets_of(batch: Any) -> Any:
    """The targets of a batch: the last element of a tuple, or `labels`, `label`, `target` or `targets` in a dict.

    Raises:
        BatchError: the batch has neither form, or a dict has two of these names.
    """
    if isinstance(batch, Mapping):
        found = [name for name in LABELS if name in batch]
        if len(found) > 1:
            raise BatchError(
                f"the batch has {' and '.join(map(repr, found))}, and each could be the labels; keep one of them, "
                f"in the data set or by collate=, or {BY_HAND}"
            )
        if found:
            return batch[found[0]]
        raise BatchError(
            f"the batch is a dict without {' or '.join(LABELS[:2])!s}; its keys are {list(batch)}; rename the labels' "
            f"key to 'labels' in the data set or by collate=, or {BY_HAND}"
        )
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        return batch[-1]
    raise BatchError(
        f"a batch must be (inputs, targets) or a dict with labels, got {in_short(batch)}; its labels are missing: give "
        f"examples (input, label), or collate=..., or {BY_HAND}"
    )


def target_tensor(batch: Any, objective: str) -> Tensor:
    """The targets of a batch as the tensor they must be.

    Raises:
        BatchError: there are none, or they are no numbers in a strided tensor.
    """
    return as_labels(targets_of(batch), objective)


def as_labels(targets: Any, objective: str) -> Tensor:
    """The targets, if they are a strided tensor of real numbers.

    Raises:
        BatchError: they are not.
    """
    if not isinstance(targets, Tensor):
        raise BatchError(
            f"{objective} needs labels in a tensor, got {in_short(targets)}; return numbers from the data set, or "
            "tensors from collate="
        )
    if targets.layout is not torch.strided:
        raise BatchError(f"{objective} needs labels in a dense tensor, got a sparse one; give labels.to_dense()")
    if targets.is_complex():
        raise BatchError(f"{objective} needs real labels, got {dtype_of(targets)}; give labels.real")
    return targets


def check_outputs(outputs: Tensor, targets: Tensor, objective: str) -> None:
    """Refuse outputs that no loss can be a smooth function of, or that lie elsewhere than the labels.

    Raises:
        BatchError: the outputs are whole numbers or complex; labels and outputs are on two devices.
    """
    if outputs.is_complex():
        raise BatchError(
            f"{objective} needs real outputs, the model gave {dtype_of(outputs)}; return their real part or modulus, "
            f"or {BY_HAND}"
        )
    if not outputs.is_floating_point():
        raise BatchError(
            f"{objective} needs floating-point outputs, the model gave {dtype_of(outputs)} "
            f"{list(outputs.shape)}; return the logits or values themselves, not classes (argmax) or decisions (> 0)"
        )
    if targets.device != outputs.device:
        raise BatchError(
            f"the labels are on {targets.device}, the outputs on {outputs.device}; give batches of tensors, tuples, "
            "lists or dicts, which are moved to the model's device"
        )


def dtype_of(tensor: Tensor) -> str:
    """The dtype as text.

    Example:
        >>> import torch
        >>> dtype_of(torch.ones(2, dtype=torch.int64))
        'int64'
    """
    return str(tensor.dtype).removeprefix("torch.")


def in_short(value: Any) -> str:
    """What a batch or its part is, in a few words.

    Example:
        >>> import torch
        >>> in_short([torch.zeros(7, 3), torch.zeros(7)])
        'a list (float32 [7, 3], float32 [7])'
        >>> in_short({"x": torch.zeros(7, 3), "names": ["a", "b"]})
        "a dict (x: float32 [7, 3], names: a list ('a', 'b'))"
    """
    if isinstance(value, Tensor):
        return f"{dtype_of(value)} {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict ({_listed([f'{key}: {in_short(part)}' for key, part in value.items()])})"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        kind = "a list" if isinstance(value, list) else f"a {type(value).__name__}"
        return f"{kind} ({_listed([in_short(part) for part in value[: SHOWN + 1]])})"
    text = repr(value)
    return text if isinstance(value, (str, int, float)) and len(text) <= LONGEST else type(value).__name__


SHOWN = 5
"""Parts of a batch that a message names."""

LONGEST = 30


def _listed(parts: list[str]) -> str:
    return ", ".join([*parts[:SHOWN], *(["..."] if len(parts) > SHOWN else [])])
