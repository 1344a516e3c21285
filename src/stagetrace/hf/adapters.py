"""What peft puts into a model: which modules are its own, and whether they are in use as trained."""

from typing import Any

from torch import nn

from stagetrace.errors import refuse
from stagetrace.hf.packages import is_adapted, is_of

PENALISED = {"ADALORA": "a penalty on the adapters' orthogonality", "SHADOW": "a loss of a second path"}
"""Kinds of adapters (`peft_type`) whose training adds something to the loss of the model's class."""


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is a layer of peft's around one of the model's (its `base_layer`)."""
    return is_of(module, "peft", "BaseTunerLayer")


def is_copied(module: nn.Module) -> bool:
    """Whether a module holds a trained copy of one of the model's (`modules_to_save`)."""
    return is_of(module, "peft", "ModulesToSaveWrapper")


def is_of_tokens(module: nn.Module) -> bool:
    """Whether a module trains some rows of an embedding (`trainable_token_indices`)."""
    return is_of(module, "peft", "TrainableTokensWrapper")


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """The names of the adapters in use; none for a model without adapters."""
    layers: list[Any] = [m for m in model.modules() if is_adapter(m) or is_copied(m) or is_of_tokens(m)]
    found = [name for layer in layers for name in layer.active_adapters]
    if is_adapted(model) and not layers:  # soft prompts have no layers of their own
        found = [str(name) for name in _listed(model.active_adapter)]
    return tuple(dict.fromkeys(found))


def settings_of(model: nn.Module) -> Any:
    """The configuration of the adapters in use, None for a model without."""
    configs: Any = getattr(model, "peft_config", None) or {}
    return next((configs[name] for name in active_adapters(model) if name in configs), None)


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters that are not in use as they were trained.

    Raises:
        DescriptionError: they are switched off or merged in place, or their training added a penalty to the loss.
    """
    for name, module in model.named_modules():
        layer: Any = module
        if is_of(module, "peft", "ParamWrapper"):
            refuse(
                f"'{name}' is LoRA on a parameter (target_parameters=), which rebuilds the layer in every forward "
                "pass, where derivatives in the weights below are lost; merge the adapters by "
                "model.merge_and_unload() and describe the stage by the merged model"
            )
        if is_adapter(module) and layer.merged:
            refuse(
                f"the adapters are merged into the weights ('{name}'), so their own parameters have no part in the "
                "loss; type: model.unmerge_adapter(), or give what model.merge_and_unload() returns"
            )
        if (is_adapter(module) or is_copied(module)) and layer.disable_adapters:
            refuse(
                f"the adapters are switched off ('{name}'), so the model answers without them; type: "
                "model.enable_adapters(), or model.base_model.enable_adapter_layers() for a PeftModel"
            )
    configs: Any = getattr(model, "peft_config", None) or {}
    for name in active_adapters(model):
        kind = getattr(getattr(configs.get(name), "peft_type", ""), "value", "")
        if kind in PENALISED:
            refuse(
                f"adapters of kind {kind} are trained with {PENALISED[kind]} added to the loss; merge them "
                "(model.merge_and_unload()) and describe the stage by the merged model"
            )


def _listed(names: Any) -> list[Any]:
    return [names] if isinstance(names, str) else list(names)
