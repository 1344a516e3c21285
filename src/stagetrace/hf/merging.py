"""What merging adapters makes of a layer's weight, as a function that PyTorch differentiates."""

import copy
from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.hf.adapters import is_adapter
from stagetrace.hf.packages import is_of
from stagetrace.stages.undone import without_training_aids

EXACT = 1e-9
"""How far, relatively, the function may be from what peft merges, and its derivative from a difference quotient."""

ADDITIVE = ("LoraLayer", "LycorisLayer", "VeraLayer")
"""Kinds of layers whose `get_delta_weight` is what they add to the weight."""


@final
class Merge:
    """The merged weight (or bias) of a layer with adapters around it, `[*shape]`, from the layer's parameters.

    Computed in float64, whatever the parameters' types. Adapters that add to the weight are asked for what they add;
    those that do otherwise (DoRA, IA3) for what the layer makes of each unit vector, since whatever was merged is a
    linear map. Checked against what peft itself merges, and its derivative against a difference quotient: peft detaches
    some norms.

    names: the layer's parameters that it is called with, in this order.

    Args:
        layer: with adapters active as they were trained; not changed, nor kept.
        kind: which of the two.
        where: how messages name the layer.

    Raises:
        DescriptionError: the function is not known for such adapters.
    """

    def __init__(self, layer: nn.Module, kind: Literal["weight", "bias"], where: str) -> None:
        values = dict(layer.named_parameters())
        self.kind: Literal["weight", "bias"] = kind
        self.module = _Whole(_emptied(layer), kind, where)
        self.names = tuple(values)
        self._check([value.detach().double() for value in values.values()], where)

    def __call__(self, *values: Tensor) -> Tensor:
        given = {f"layer.{name}": value.double() for name, value in zip(self.names, values, strict=True)}
        return torch.func.functional_call(self.module, given, ())

    def by_peft(self, values: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """What peft itself merges these into, in this type or in their own."""
        layer: Any = copy.deepcopy(self.module.layer).to(dtype or values[0].dtype)
        for name, value in zip(self.names, values, strict=True):
            owner, _, last = name.rpartition(".")
            placed = value.detach().to(dtype or value.dtype, copy=True)
            setattr(layer.get_submodule(owner), last, nn.Parameter(placed, requires_grad=False))
        for each in _chain(layer):
            each.merge()
        return getattr(_chain(layer)[0].base_layer, self.kind).detach()

    def _check(self, values: Sequence[Tensor], where: str) -> None:
        value, merged = self(*values), self.by_peft(values)
        size = float(merged.abs().max())
        if value.shape != merged.shape or float((value - merged).abs().max()) > EXACT * size:
            refuse(
                f"{where} has adapters of a kind ({type(self.module.layer).__name__}) whose merged weight cannot be "
                "computed from their parameters here; describe the stage before by its merged folder "
                "(model.merge_and_unload().save_pretrained(folder)) instead of its adapters"
            )
        generator = torch.Generator().manual_seed(0)
        along = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.device) for v in values]
        cotangent = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
        sources = [v.clone().requires_grad_() for v in values]
        with torch.enable_grad():
            slopes = torch.autograd.grad(self(*sources), sources, cotangent, materialize_grads=True)
        step = 1e-5
        ahead, behind = (
            self(*(v + sign * step * a for v, a in zip(values, along, strict=True))) for sign in (1.0, -1.0)
        )
        expected = float((cotangent * (ahead - behind)).sum()) / (2 * step)
        found = sum(float((s * a).sum()) for s, a in zip(slopes, along, strict=True))
        size = sum(float((s * a).abs().sum()) for s, a in zip(slopes, along, strict=True))
        if abs(found - expected) > 1e-6 * size:
            refuse(
                f"{where} has adapters of a kind ({type(self.module.layer).__name__}) of whose merged weight PyTorch "
                "takes no right derivative; describe the stage before by its merged folder "
                "(model.merge_and_unload().save_pretrained(folder)) instead of its adapters"
            )


@final
class _Whole(nn.Module):
    """Called without arguments: the merged weight or bias of its layer."""

    def __init__(self, layer: nn.Module, kind: Literal["weight", "bias"], where: str) -> None:
        super().__init__()
        self.layer, self.kind, self.where = layer, kind, where

    def forward(self) -> Tensor:
        chain = _chain(self.layer)
        base: Any = chain[0].base_layer
        if self.kind == "weight" and all(map(_adds, chain)):
            weight = base.weight
            for layer in chain:
                for name in _active(layer):
                    weight = weight + layer.get_delta_weight(name)
            return weight
        if self.kind == "weight" and len(chain) == 1 and hasattr(chain[0], "get_merged_weights"):  # rows of tokens
            return chain[0].get_merged_weights(chain[0].active_adapters)
        transposed = isinstance(base, nn.Linear)
        if not transposed and not is_of(base, "transformers", "Conv1D"):
            if self.kind == "bias":
                return base.bias
            refuse(
                f"{self.where}, a layer of class {type(base).__name__}, has adapters that do not add to its weight "
                f"({type(self.layer).__name__}), whose merging is not known here; describe the stage before by its "
                "merged folder (model.merge_and_unload().save_pretrained(folder)) instead of its adapters"
            )
        inputs = base.weight.shape[1 if transposed else 0]
        units = torch.eye(inputs, dtype=base.weight.dtype, device=base.weight.device)
        constant = self.layer(torch.zeros_like(units[:1]))
        if self.kind == "bias":
            return constant[0]
        rows = self.layer(units) - constant
        return rows.T if transposed else rows


def _chain(layer: nn.Module) -> list[Any]:
    """Adapters around adapters around a layer: from the inside to the outside."""
    inner: Any = layer
    found = [inner]
    while is_adapter(inner.base_layer):
        inner = inner.base_layer
        found.insert(0, inner)
    return found


def _adds(layer: Any) -> bool:
    """Whether a layer's adapters add to the weight, and nothing else."""
    plain = not any(name in getattr(layer, "lora_variant", {}) for name in layer.active_adapters)
    return plain and any(is_of(layer, "peft", kind) for kind in ADDITIVE)


def _active(layer: Any) -> list[str]:
    """The active adapters that this layer has."""
    known = {str(name) for kind in layer.adapter_layer_names for name in getattr(layer, kind, {})}
    return [name for name in layer.active_adapters if name in known]


def _emptied(layer: nn.Module) -> nn.Module:
    """A copy in eval mode without its parameters' values."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty(0, dtype=torch.float64), requires_grad=False) for p in layer.parameters()
    }
    return without_training_aids(copy.deepcopy(layer, memo).double().eval(), "the adapters to be merged")
