"""What training libraries added to a model, removed from the library's own copy: none of it is part of the model.

Recognised by name: those libraries are not imported.
"""

from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from stagetrace.errors import refuse

EXPERTS = "_experts_implementation"
"""Where a configuration of transformers says by which kernel experts are multiplied."""


def without_training_aids(model: nn.Module, where: str) -> nn.Module:
    """The model as its class computes it; changes `model`, which must be the library's own.

    - accelerate's `forward` in mixed precision (`bf16=True`, `fp16=True`), which rounds to sixteen bits;
    - TRL's `forward`, which may compute the loss with the output layer, and else calls the user's own model;
    - hooks that mark the output of embeddings as requiring a gradient (gradient checkpointing), or add noise to it
      (NEFTune);
    - fused kernels for mixtures of experts, which have neither a second derivative nor forward mode;
    - DoRA's weight norm treated as a constant: peft detaches it, so training did not follow the gradient of the loss.
      Both vanish at the same points (the part left out is along the magnitude's derivative), but derivatives with
      respect to the weights below, which an earlier stage trained, are right only if they include the norm.

    Raises:
        DescriptionError: DoRA on a layer that is not linear, which has no plain form here.
    """
    for name, module in model.named_modules():
        _without_mixed_precision(module)
        _without_fused_output(module)
        _without_hooks(module)
        config: Any = getattr(module, "config", None)
        if getattr(config, EXPERTS, None) not in (None, "eager"):
            setattr(config, EXPERTS, "eager")
        if type(module).__module__.startswith("peft.") and type(module).__name__.startswith("Dora"):
            _with_norm(name, module, where)
    return model


def _without_mixed_precision(module: nn.Module) -> None:
    attributes = vars(module)
    original = attributes.pop("_original_forward", None)
    if original is None or "forward" not in attributes:
        return
    del attributes["forward"]
    function = getattr(original, "__func__", None)
    if function is not None and function is not type(module).forward:  # another one was there before
        module.forward = MethodType(function, module)


def _without_fused_output(module: nn.Module) -> None:
    function = getattr(vars(module).get("forward"), "__func__", None)
    home = getattr(function, "__globals__", {}).get("__name__", "")
    if home.partition(".")[0] == "trl" and getattr(function, "__wrapped__", None) is type(module).forward:
        del module.forward


def _without_hooks(module: nn.Module) -> None:
    for number, hook in list(module._forward_hooks.items()):  # pyright: ignore[reportPrivateUsage]
        name = getattr(hook, "__name__", "")
        if name in ("make_inputs_require_grads", "make_inputs_require_grad", "neftune_post_forward_hook"):
            del module._forward_hooks[number]  # pyright: ignore[reportPrivateUsage]


def _with_norm(name: str, module: nn.Module, where: str) -> None:
    kind = type(module).__name__
    if kind != "DoraLinearLayer":
        refuse(
            f"{where}: '{name}' is DoRA on a layer that is not linear ({kind}), whose weight norm peft treats as a "
            "constant, so its derivatives are not those of the loss; describe the stage by its merged model "
            "(model.merge_and_unload())"
        )
    module.forward = MethodType(_dora_linear, module)


def _dora_linear(
    layer: Any,
    x: Tensor,
    *,
    lora_A: Any,
    lora_B: Any,
    scaling: float,
    base_layer: Any,
    base_result: Any = None,
    **rest: Any,
) -> Tensor:
    """What DoRA adds to `W x + b`: with `s = m / |W + c B A|`, row by row, `(s - 1) W x + s c B A x`."""
    low = layer.get_lora_weight(lora_A=lora_A, lora_B=lora_B, **rest).to(x.dtype)
    weight = base_layer.weight.to(x.dtype)
    norm = layer.get_weight_norm(weight=weight, lora_weight=low, scaling=scaling, **rest)
    scale = (layer.weight / norm).view(1, -1)
    if base_result is None:
        base_result = F.linear(x, weight.T if layer.fan_in_fan_out else weight)
    elif base_layer.bias is not None:
        base_result = base_result - base_layer.bias
    return (scale - 1) * base_result + scale * lora_B(lora_A(x)) * scaling
