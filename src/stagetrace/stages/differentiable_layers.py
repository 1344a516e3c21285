"""The library's own copy of a model, with layers computed so that every derivative exists and is right."""

from functools import wraps
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from stagetrace.stages.differentiable_lookups import replace_lookups
from stagetrace.stages.differentiable_norms import replace_norms
from stagetrace.stages.undone import without_training_aids


def replace_layers(model: nn.Module, where: str) -> nn.Module:
    """The same function of the parameters; changes `model`, which must be the library's own.

    Raises:
        DescriptionError: a layer has no differentiable form as it is; says what to type.
    """
    without_training_aids(model, where)
    for module in model.modules():
        if type(module).__name__ == "OptimizedModule":  # by name: importing the compiler takes a second
            _uncompile(module)
        if type(module) is parametrizations._WeightNorm:  # pyright: ignore[reportPrivateUsage]
            module.__class__ = DifferentiableWeightNorm
    return replace_lookups(replace_norms(model), where)


def _uncompile(module: nn.Module) -> None:
    """Have a compiled module call what it was compiled from; names and signature stay."""
    inner = module.get_submodule("_orig_mod")

    @wraps(inner.forward)
    def forward(*arguments: Any, **named: Any) -> Any:
        return inner(*arguments, **named)

    module.__class__ = Uncompiled
    module.forward = forward


@final
class Uncompiled(nn.Module):
    """What stands in for a compiled module: its attributes are those of the module inside."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_orig_mod"), name)


@final
class DifferentiableWeightNorm(parametrizations._WeightNorm):  # pyright: ignore[reportPrivateUsage]
    """`g v / |v|`, written out: the fused kernel (PyTorch 2.13) has no forward mode, and its second derivative takes
    `|v|` for a constant, which silently makes the Hessian wrong.
    """

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        kept = None if self.dim == -1 else self.dim % weight_v.ndim
        reduced = [dim for dim in range(weight_v.ndim) if dim != kept]
        return weight_v * (weight_g / torch.linalg.vector_norm(weight_v, dim=reduced, keepdim=True))
