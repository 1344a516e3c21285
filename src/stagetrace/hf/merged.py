"""Adapters that were merged into the weights before the next stage: taken apart again, so that they can be shared."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.hf.adapters import is_adapter
from stagetrace.hf.names import plain_names

ROUNDING = 16
"""How many roundings of the coarser type a merged weight may be away from base plus adapter."""


def merged_layers(model: nn.Module, previous: nn.Module) -> dict[str, nn.Module]:
    """`{module of this model: the previous stage's adapter layer that was merged into its weight}`.

    Raises:
        DescriptionError: a weight is nearer to the merged one than to the previous stage's base, and neither: it was
            trained further after merging.
    """
    if not any(is_adapter(module) for module in previous.modules()):
        return {}
    ours = {plain: name for name, plain in plain_names(model).items()}
    values, theirs = dict(model.named_parameters(remove_duplicate=False)), plain_names(previous)
    found: dict[str, nn.Module] = {}
    for path, layer in previous.named_modules():
        here = ours.get(theirs.get(f"{path}.base_layer.weight", ()))
        if not is_adapter(layer) or here is None:
            continue
        weight, base = values[here].detach(), layer.get_submodule("base_layer").get_parameter("weight").detach()
        if weight.shape != base.shape or torch.equal(weight, base.to(weight)):
            continue
        merged = _merged(layer)
        if _equal_to_rounding(weight, merged):
            found[here.rpartition(".")[0]] = layer
        elif _distance(weight, merged) < _distance(weight, base):
            refuse(
                f"'{here}' is the weight of the stage before with its adapters merged in, and then trained further: no "
                "link pulls towards a weight and its adapters at once; describe the stage before by its merged "
                "folder (model.merge_and_unload().save_pretrained(folder)) instead of its adapters"
            )
    return found


def with_adapters_apart(model: nn.Module, previous: nn.Module) -> nn.Module:
    """The model with the previous stage's adapters beside its base weights, where they were merged into them.

    The function is the same to rounding, and what the previous stage trained is a parameter again. The model itself is
    not changed.
    """
    found = merged_layers(model, previous)
    if not found:
        return model
    copied = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for path, layer in found.items():
        like = next(model.get_submodule(path).parameters())
        apart = copy.deepcopy(layer).to(like.device, like.dtype).eval()
        copied.set_submodule(path, apart.requires_grad_(requires_grad=False))
    return copied


def _merged(layer: nn.Module) -> Tensor:
    copied: Any = copy.deepcopy(layer).eval()
    copied.merge()
    return copied.get_base_layer().weight.detach()


def _equal_to_rounding(weight: Tensor, merged: Tensor) -> bool:
    eps = max(torch.finfo(weight.dtype).eps, torch.finfo(merged.dtype).eps)
    return float((weight.double() - merged.double()).abs().max()) <= ROUNDING * eps * float(merged.abs().max())


def _distance(weight: Tensor, other: Tensor) -> float:
    return float((weight.double() - other.double()).norm())
