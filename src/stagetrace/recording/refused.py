"""Trainings that cannot be recorded such that they replay: refused by name, with what to do instead."""

import sys
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import nn

from stagetrace.errors import refuse

_DROPOUT_SETTINGS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
)
"""What configurations of transformers call probabilities of dropout that no module of its own carries out."""

_SPREAD = {
    "DistributedDataParallel": "data parallelism over several processes",
    "DataParallel": "data parallelism over several devices",
    "FullyShardedDataParallel": "FSDP",
    "FSDPModule": "FSDP",
    "DeepSpeedEngine": "DeepSpeed",
}


def check_model(model: nn.Module) -> None:
    """Refuse models whose training would not be replayed by the plain module in one process.

    Raises:
        DescriptionError: spread over devices or processes; averaged weights; compiled with dropout.
    """
    kinds = {cls.__name__ for module in (model, *model.modules()) for cls in type(module).__mro__}
    for kind in sorted(kinds & set(_SPREAD)):
        refuse(
            f"Recording: the model is trained by {_SPREAD[kind]} ({kind}), where each process sees a part of a batch; "
            "record a training in one process, with as many batches accumulated for a step as there were processes"
        )
    if isinstance(model, torch.optim.swa_utils.AveragedModel):
        refuse(
            "Recording: the model holds averaged weights (AveragedModel), which no optimiser steps; give the module "
            "that is trained, and the average beside it: Recording(folder, model, optimizer, average=averaged)"
        )
    if any(is_compiled(module) for module in model.modules()):
        refuse_compiled(model)


def is_compiled(model: nn.Module, *, inside: bool = False) -> bool:
    """Whether `torch.compile` made code of it. inside: whether of its call too, the hooks on the model included."""
    in_place = getattr(model, "_compiled_call_impl", None) is not None
    return in_place if inside else in_place or type(model).__name__ == "OptimizedModule"


def refuse_compiled(model: nn.Module) -> None:
    """Refuse compiled dropout: the compiler draws masks of its own, which the plain module does not draw again.

    Raises:
        DescriptionError: a compiled model with dropout, and the compiler was not told to draw as PyTorch does.
    """
    if not drops_out(model) or _draws_as_plain():
        return
    refuse(
        "Recording: the model is compiled and has dropout, whose masks the compiler draws in its own way; train "
        "without torch.compile, or set torch._inductor.config.fallback_random = True before the training"
    )


def _draws_as_plain() -> bool:
    settings = sys.modules.get("torch._inductor.config")  # unless it was imported nothing was set; that takes seconds
    return bool(getattr(settings, "fallback_random", False))


def drops_out(model: nn.Module) -> bool:
    """Whether a module of the model drops at random, or its configuration says so."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:  # pyright: ignore[reportPrivateUsage]
            return True
        if isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout:
            return True
        config = getattr(module, "config", None)
        if any(isinstance(p := getattr(config, name, 0), float) and p > 0 for name in _DROPOUT_SETTINGS):
            return True
    return False


def refuse_scaler(original: Callable[..., Any], scaler: Any, *arguments: Any, **named: Any) -> Any:
    """In the place of `GradScaler.scale` while recording.

    Raises:
        DescriptionError: the scaler is on.
    """
    if scaler.is_enabled():
        refuse(
            "recording: torch.amp.GradScaler multiplies losses so that gradients fit into float16, and leaves out "
            "steps where they do not; what underflows has no derivative. Train in bfloat16, which needs no scaler "
            "(bf16=True, mixed_precision='bf16', precision='bf16-mixed'), or in float32"
        )
    return original(scaler, *arguments, **named)


def refuse_other_optimizer(optimizer: torch.optim.Optimizer, own: Container[int]) -> None:
    """Refuse another optimiser's step on the model that is recorded. own: the ids of the model's parameters.

    Raises:
        DescriptionError: it holds parameters of the model.
    """
    if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        refuse(
            f"recording: {type(optimizer).__name__} stepped on the model too, beside the optimiser that is recorded; "
            "train with one optimiser (with a parameter group for each rate), or record the model that each has apart"
        )


def check_norm(kind: float) -> None:
    """Refuse clipping by another norm than the Euclidean one, at the step that does it and not when all is trained.

    Raises:
        DescriptionError: it is another.
    """
    if kind != 2:
        refuse(
            f"recording: clip_grad_norm_(norm_type={kind:g}) has no derivative here; clip by the Euclidean norm, "
            "norm_type=2, which is the default"
        )
