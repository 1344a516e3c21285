"""How the ready-made objectives call a model: its inputs by position or by name, and which tensor is its output."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from stagetrace.errors import BatchError
from stagetrace.objectives.batches import BY_HAND, LABELS, in_short, targets_of

BOOKKEEPING = ("index", "idx", "id", "ids")
"""Names of an example's number; not an input of the model, unless its `forward` takes them."""


def call(model: nn.Module, batch: Any) -> Tensor:
    """The model's output tensor for a batch, its targets left out.

    A dict is passed by keyword; a single input goes in by position, whatever its name. Models of `transformers` are
    given what their `forward` takes, as `transformers.Trainer` does; any other model must take every tensor in the
    batch. Of a dict, a `ModelOutput` or another object the `logits` are taken, of a tuple the first element.

    Raises:
        BatchError: the batch does not fit the model's `forward`, or no output tensor can be found.
    """
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key not in LABELS}
        return tensor_of(output_of(model, inputs))
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        targets_of(batch)
        return tensor_of(_called(model, batch[:-1], {}))
    return tensor_of(_called(model, [batch], {}))


def _called(model: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """The model's return value; arguments that `forward` cannot take are refused with its signature."""
    try:
        return model(*inputs, **named)
    except TypeError as cause:
        if _binds(model, inputs, named):
            raise
        given = f"{len(inputs)} input{'s' * (len(inputs) != 1)}" if inputs else f"{_quoted(named) or 'nothing'}"
        raise BatchError(
            f"the batch gives the model {given}, but {type(model).__name__}.forward takes ({_signature(model)}); give "
            f"collate=... with what it takes, or {BY_HAND}"
        ) from cause


def _binds(model: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(*inputs, **named)
    except TypeError:
        return False
    except ValueError:  # a function without a signature: nothing is known
        return True
    return True


def output_of(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """What the model returns for inputs by name, as `call` gives them.

    Raises:
        BatchError: they do not fit its `forward`.
    """
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        known = inputs
    else:
        known = {key: value for key, value in inputs.items() if key in parameters}
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    if len(tensors) == 1 and not set(inputs) & set(parameters):
        return _called(model, tensors, {})
    _check_names(model, parameters, inputs, known)
    return _called(model, [], known)


def _check_names(
    model: nn.Module, parameters: Mapping[str, inspect.Parameter], inputs: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    """Refuse inputs that `forward` needs and lacks, and tensors that it would never see."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    missing = [key for key, p in parameters.items() if p.kind in named and p.default is p.empty and key not in known]
    hooks = model._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]  (one may give what the batch lacks)
    if missing and not hooks:
        also = f"; '{missing[0]}' is read as the labels and not passed on" if missing[0] in LABELS else ""
        raise BatchError(
            f"{type(model).__name__}.forward takes ({_signature(model)}), but the batch has no {_quoted(missing)}; its "
            f"inputs are {_quoted(inputs) or 'none'}{also}; rename them in the data set or by collate=, or {BY_HAND}"
        )
    left = [
        key
        for key, value in inputs.items()
        if key not in known and isinstance(value, Tensor) and key not in BOOKKEEPING
    ]
    if left and not _is_of_transformers(model):
        raise BatchError(
            f"the batch has {_quoted(left)}, which {type(model).__name__}.forward does not take: it takes "
            f"({_signature(model)}); rename {'it or leave it' if len(left) == 1 else 'them or leave them'} out in the "
            f"data set or by collate=, or {BY_HAND}"
        )


def _is_of_transformers(model: nn.Module) -> bool:
    """Whether the model is called as `transformers` calls models: columns that it does not take were never used."""
    return isinstance(getattr(model, "main_input_name", None), str)


def _signature(model: nn.Module) -> str:
    return ", ".join(
        f"{'**' if p.kind is p.VAR_KEYWORD else '*' if p.kind is p.VAR_POSITIONAL else ''}{name}"
        + ("" if p.default is p.empty else "=...")
        for name, p in inspect.signature(model.forward).parameters.items()
    )


def _quoted(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)


def tensor_of(output: Any) -> Tensor:
    """The tensor in a model's return value."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    what = in_short(output) if isinstance(output, (Mapping, list, float, int)) else type(output).__name__
    raise BatchError(
        f"the model returned {what}, from which no output tensor can be taken: it is no tensor, has "
        "no 'logits', and is no tuple that starts with a tensor; write an objective whose outputs(model, batch) "
        f"returns the tensor, or {BY_HAND}"
    )
