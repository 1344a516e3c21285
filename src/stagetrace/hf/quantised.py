"""Quantised weights below adapters: constants of a stage, through which no earlier stage is traced."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.hf.adapters import is_adapter
from stagetrace.hf.names import Plain, plain_names, plain_of
from stagetrace.hf.packages import base_of, is_of

FULL = "load the model in full precision, e.g. {kind}.from_pretrained(folder, dtype=torch.{dtype})"


def is_quantised(tensor: Tensor) -> bool:
    """Whether a parameter holds packed integers, or numbers of less than sixteen bits."""
    return _is_foreign(tensor) or not tensor.is_floating_point() or tensor.dtype.itemsize < 2


def check_quantised(model: nn.Module, where: str) -> None:
    """Refuse a quantised model, unless it is the base of adapters and a smooth function of what it reads.

    Raises:
        DescriptionError: with how to load it instead.
    """
    base: Any = base_of(model)
    instead = FULL.format(kind=type(base).__name__, dtype=_full(base))
    marked = getattr(base, "hf_quantizer", None) is not None or bool(getattr(base, "is_quantized", False))
    quantised = [name for name, parameter in model.named_parameters() if is_quantised(parameter)]
    if not (marked or quantised):
        return
    if not any(is_adapter(module) for module in model.modules()):
        refuse(
            f"{where}: the weights are quantised, so the loss has no derivative in them; {instead}. (Adapters on a "
            "quantised base can be traced: give the PeftModel)"
        )
    for name, parameter in model.named_parameters():
        if _is_foreign(parameter):
            refuse(
                f"{where}: '{name}' is a {type(parameter).__name__} of {type(parameter).__module__.split('.')[0]}, "
                f"which second derivatives do not go through; {instead}, or in 4 bits by bitsandbytes, put the "
                "adapters on that, and give it as model="
            )
    for name, module in model.named_modules():
        if is_of(module, "bitsandbytes", "Linear8bitLt"):
            refuse(
                f"{where}: '{name}' rounds what it reads to 8 bits, too (load_in_8bit), so the loss is a staircase "
                f"without a derivative; {instead}, or load_in_4bit=True, put the adapters on that, and give it as "
                "model="
            )


def check_traceable(model: nn.Module, previous: nn.Module) -> None:
    """Refuse a stage whose quantised weights were parameters in full precision of the one before, or the reverse.

    Raises:
        DescriptionError: what the stage before trained would be left out of its scores.
    """
    ours, theirs = set(_quantised(model)), set(_quantised(previous))
    whole = {plain for plain in plain_names(previous).values() if plain not in theirs}
    lost = sorted(plain[-1] for plain in ours & whole)
    if lost:
        refuse(
            f"'{lost[0]}' and {len(lost) - 1} more are quantised, which makes them constants: examples of the stage "
            "before cannot be traced through them. Trace this stage alone (leave after= out), or load its base in the "
            "precision of the stage before"
        )
    merged = sorted(plain[-1] for plain in theirs & {*plain_names(model).values()} if plain not in ours)
    if merged:
        refuse(
            f"'{merged[0]}' is in full precision here, and was quantised in the stage before: what adapters on a "
            "quantised base become when they are merged is not known here, and examples of that stage cannot be traced "
            "through it. Keep the quantised base below both adapters, or trace this stage alone (leave after= out)"
        )


def _quantised(model: nn.Module) -> Iterator[Plain]:
    """The plain names of quantised weights; of packed buffers, the name that the weight had."""
    named = plain_names(model)
    for name, parameter in model.named_parameters():
        if name in named and is_quantised(parameter):
            yield named[name]
    packed = [
        f"{path}.weight" if path else "weight"
        for path, module in model.named_modules()
        if "weight" not in module._parameters  # pyright: ignore[reportPrivateUsage]
        and any(b is not None and not b.is_floating_point() and b.ndim > 1 for b in module._buffers.values())  # pyright: ignore[reportPrivateUsage]
    ]
    yield from plain_of(model, packed).values()


def _is_foreign(tensor: Tensor) -> bool:
    """Whether a tensor is of a class of torchao's, whatever type of number it says it holds."""
    return type(tensor).__module__.partition(".")[0] == "torchao"


def _full(base: Any) -> str:
    dtype = getattr(getattr(base, "config", None), "dtype", None)
    return str(dtype if isinstance(dtype, torch.dtype) else torch.float32).removeprefix("torch.")
