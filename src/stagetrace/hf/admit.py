"""Whether a model in memory can be traced: wrappers are removed, and what cannot be traced is refused."""

from typing import Any

from torch import nn

from stagetrace.errors import DescriptionError, refuse
from stagetrace.hf.adapters import check_adapters
from stagetrace.hf.quantised import check_quantised
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
        DescriptionError: quantised weights, but for a frozen base of adapters; weights that were not loaded (on the
            meta device or offloaded); adapters that are not in use as they were trained.
    """
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            refuse(
                f"{where}: the weights of '{name}' are not in memory (device 'meta': offloaded, or never loaded); load "
                "the model whole, without device_map= and low_cpu_mem_usage"
            )
    check_quantised(model, where)
    try:
        check_adapters(model)
    except DescriptionError as cause:
        refuse(f"{where}: {cause}")
