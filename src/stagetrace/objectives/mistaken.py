"""Refusals of what is easily mistaken for an objective: PyTorch's losses, and functions of outputs and labels."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from stagetrace.errors import refuse

INSTEAD = {
    "cross_entropy": "Classification()",
    "nll_loss": "Classification(), of the logits before log_softmax",
    "mse_loss": "Regression()",
    "binary_cross_entropy_with_logits": "BinaryClassification() for one logit, MultiLabel() for several",
    "binary_cross_entropy": "BinaryClassification() for one logit, MultiLabel() for several, of the logits before "
    "sigmoid",
    "multilabel_soft_margin_loss": "MultiLabel()",
}
"""The objective that is a function of `torch.nn.functional`, per example."""

MODULES = {
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "MSELoss": "mse_loss",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "BCELoss": "binary_cross_entropy",
    "MultiLabelSoftMarginLoss": "multilabel_soft_margin_loss",
}

OUTPUTS = {
    *("outputs", "output", "out", "logits", "logit", "pred", "preds", "prediction", "predictions", "y_pred", "y_hat"),
    *("yhat", "scores", "probs", "log_probs", "input"),
}
LABELS = {"labels", "label", "targets", "target", "y", "y_true", "truth", "ground_truth"}


def refuse_pytorch_s_own(objective: object, where: str) -> None:
    """Refuse a loss module, a function of `torch.nn.functional`, and what wraps one.

    Raises:
        DescriptionError: says which objective is the same loss, or how a function is written.
    """
    function: Any = objective
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    module = function if isinstance(function, nn.Module) else owner if isinstance(owner, nn.Module) else None
    of_pytorch = str(getattr(function, "__module__", "")).startswith("torch.nn")
    if module is not None and (module is function or of_pytorch):
        kind = type(module).__name__
        settings = _unusual(module)
        same = "" if settings else INSTEAD.get(MODULES.get(kind, ""), "")
        refuse(
            f"{where}: objective is the module {kind}{settings}, which does not say what it takes; "
            f"use {f'{same} from ' if same else ''}stagetrace.objectives, or a function losses(model, batch) that "
            "returns one loss per example (reduction='none')"
        )
    if of_pytorch:
        name = getattr(function, "__name__", repr(function))
        same = INSTEAD.get(name, "") if function is objective else ""
        refuse(
            f"{where}: objective is PyTorch's {name}, which takes outputs and labels; use "
            f"{f'{same} from stagetrace.objectives, or ' if same else ''}a function losses(model, batch) that returns "
            f"one loss per example: {name}(model(batch[0]), batch[1], reduction='none')"
        )


def _unusual(module: nn.Module) -> str:
    """Settings that make a loss module another loss than the ready-made objective, in brackets."""
    weighted = [name for name in ("weight", "pos_weight") if getattr(module, name, None) is not None]
    smoothed = ["label_smoothing"] if getattr(module, "label_smoothing", 0.0) else []
    return f" (with {', '.join([*weighted, *smoothed])})" if weighted or smoothed else ""


def refuse_signature(function: Callable[..., Any], wanted: str, where: str) -> None:
    """Refuse a function that does not take what it will be given; one without a signature passes.

    Raises:
        DescriptionError: it takes another number of arguments, or by its names outputs and labels.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    name = getattr(function, "__name__", type(function).__name__)
    takes = f"{name}({', '.join(str(p.replace(annotation=p.empty)) for p in signature.parameters.values())})"
    try:
        signature.bind(None, None)
    except TypeError:
        refuse(f"{where}: the objective has {takes}, but it is called as {wanted}; write it with these two arguments")
    names = [*signature.parameters]
    if len(names) >= 2 and names[0] not in ("self", "cls") and names[1].lower() in LABELS:
        if wanted.startswith("losses(model") and names[0].lower() in OUTPUTS:
            refuse(
                f"{where}: objective is the function {takes}, by its names one of outputs and labels; write it as "
                f"{wanted}, which calls the model itself: {name}(model(batch[0]), batch[1])"
            )
        if wanted.startswith("losses(outputs"):
            refuse(
                f"{where}: the objective has {takes}, but it is called as {wanted}: its second argument is the whole "
                f"batch; take the labels out of it and call the argument batch"
            )
