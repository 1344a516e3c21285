"""Whether a model in memory can be traced: wrappers are removed, and what cannot be traced is refused."""

from typing import Any

import torch
from torch import nn

from stagetrace.errors import DescriptionError, refuse
from stagetrace.hf.adapters import check_adapters
from stagetrace.hf.packages import base_of
from stagetrace.stages.wrappers import refuse_wrapped


def unwrapped(model: Any, where: str) -> Any:
    """The model inside what `torch.compile` made of it.

    Raises:
        DescriptionError: the model is wrapped for several devices, or its parameters lie in shards.
    """
    if not isinstance(model, nn.Module):
        return model
    inner: Any = model
    while type(inner).__name__ == "OptimizedModule":
        inner = inner._orig_mod
    if type(inner).__name__ == "DeepSpeedEngine":
        refuse(
            f"{where}: model is a DeepSpeedEngine, whose parameters lie in pieces; save it by "
            "trainer.save_model(folder) and give the folder as model="
        )
    refuse_wrapped(inner, where)
    return inner


def admit(model: Any, where: str) -> None:
    """Refuse a model of transformers or peft whose scores would all be wrong.

    Raises:
        DescriptionError: quantised weights, weights that were not loaded (on the meta device or offloaded), adapters
            that are not in use as they were trained.
    """
    base = base_of(model)
    quantised = getattr(base, "hf_quantizer", None) is not None or bool(getattr(base, "is_quantized", False))
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            refuse(
                f"{where}: the weights of '{name}' are not in memory (device 'meta': offloaded, or never loaded); load "
                "the model whole, without device_map= and low_cpu_mem_usage"
            )
        quantised |= not parameter.is_floating_point() or parameter.dtype.itemsize < 2
    if quantised:
        refuse(
            f"{where}: the weights are quantised, so the loss has no derivative in them; load the model in full "
            f"precision, e.g. {type(base).__name__}.from_pretrained(folder, dtype=torch.{_full(base)}), put the "
            "adapters on that, and give it as model="
        )
    try:
        check_adapters(model)
    except DescriptionError as cause:
        refuse(f"{where}: {cause}")


def _full(base: Any) -> str:
    dtype = getattr(getattr(base, "config", None), "dtype", None)
    return str(dtype if isinstance(dtype, torch.dtype) else torch.float32).removeprefix("torch.")
