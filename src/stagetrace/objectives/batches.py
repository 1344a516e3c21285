"""How the ready-made objectives read a batch: `(inputs, targets)` tuples and Hugging Face dict batches alike."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stagetrace.errors import DataError

LABELS = ("labels", "label", "target", "targets")


def targets_of(batch: Any) -> Any:
    """The targets of a batch: the last element of a tuple, or the first of `labels`, `label`, `target(s)` in a dict.

    Raises:
        DataError: the batch has neither form.
    """
    if isinstance(batch, Mapping):
        for name in LABELS:
            if name in batch:
                return batch[name]
        raise DataError(f"the batch is a dict without {' or '.join(LABELS[:2])!s}; its keys are {list(batch)}")
    if isinstance(batch, Sequence) and len(batch) >= 2:
        return batch[-1]
    raise DataError(
        f"a batch must be (inputs, targets) or a dict with labels, got {type(batch).__name__}; "
        "give the stage collate=..., or write the loss as a function losses(model, batch)"
    )


def call(model: nn.Module, batch: Any) -> Tensor:
    """The model's output tensor for a batch, its targets left out.

    A dict is passed by keyword, only what `forward` takes (as `transformers.Trainer` does); a single input goes in
    by position. Of a dict, a `ModelOutput` or another object the `logits` are taken, of a tuple the first element.
    """
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key not in LABELS}
        return tensor_of(_call_by_keyword(model, inputs))
    if isinstance(batch, Sequence):
        return tensor_of(model(*batch[:-1]))
    return tensor_of(model(batch))


def _call_by_keyword(model: nn.Module, inputs: dict[str, Any]) -> Any:
    parameters = inspect.signature(model.forward).parameters
    takes_anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = inputs if takes_anything else {key: value for key, value in inputs.items() if key in parameters}
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    if len(tensors) == 1 and not set(inputs) & set(parameters):
        return model(tensors[0])
    return model(**known)


def tensor_of(output: Any) -> Tensor:
    """The tensor in a model's return value."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise DataError(
        f"the model returned {type(output).__name__}, from which no output tensor can be taken: it is no tensor, has "
        "no 'logits', and is no tuple that starts with a tensor; write an objective whose outputs(model, batch) "
        "returns the tensor, or the loss as a function losses(model, batch)"
    )
