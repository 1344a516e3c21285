"""Batch norms on the library's own copy of a model, as functions of their running statistics too.

PyTorch's kernel has no derivative in `running_mean` and `running_var`, and in training mode it writes into them.
"""

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.stages.space import Params

_BatchNorm = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]

_STATISTICS = ("running_mean", "running_var")


def statistics_places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Where PyTorch's own batch norms hold running means and variances: the name, the layer and its attribute."""
    for prefix, module in model.named_modules():
        if _is_known(module):
            for name in _STATISTICS:
                yield (f"{prefix}.{name}" if prefix else name), module, name


def running_statistics(model: nn.Module) -> Params:
    """The running means and variances of PyTorch's own batch norms, by their names."""
    return {name: getattr(module, attribute) for name, module, attribute in statistics_places(model)}


def replace_norms(model: nn.Module) -> nn.Module:
    """The same function; changes `model`, which must be the library's own."""
    for module in model.modules():
        if _is_known(module):
            module.forward = MethodType(_batch_norm, module)
    return model


def _is_known(module: nn.Module) -> bool:
    """Whether it computes as `nn.BatchNorm2d` does, with running statistics; a class of one's own may do otherwise."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None or module.running_var is None:
        return False
    replaced = vars(module).get("forward")
    return type(module).forward is _BatchNorm.forward and getattr(replaced, "__func__", None) in (None, _batch_norm)


def _batch_norm(norm: Any, input: Tensor) -> Tensor:
    """`nn.BatchNorm1d`, `2d` and `3d`. Running statistics are replaced, never written into: what they were computed
    from stays known, and a derivative goes through them.

    With f the momentum (1 over the number of batches so far, where that is None), x over the batch and its places, and
    its variance that with n - 1 in the divisor:

        running_mean' = (1 - f) running_mean + f mean(x),    running_var' = (1 - f) running_var + f variance(x).
    """
    mean, variance = norm.running_mean, norm.running_var
    if norm.training and norm.track_running_stats:
        norm._check_input_dim(input)
        outputs = F.batch_norm(input, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        share = _share(norm)
        now, its_mean = torch.var_mean(input.to(mean.dtype), [0, *range(2, input.ndim)], correction=1)
        norm.running_mean = (1 - share) * mean + share * its_mean
        norm.running_var = (1 - share) * variance + share * now
        return outputs
    if norm.training or not (mean.requires_grad or variance.requires_grad):
        return _BatchNorm.forward(norm, input)
    shape = (1, -1, *[1] * (input.ndim - 2))
    outputs = (input - mean.view(shape)) / (variance.view(shape) + norm.eps).sqrt()
    if norm.weight is not None:
        outputs = outputs * norm.weight.view(shape)
    if norm.bias is not None:
        outputs = outputs + norm.bias.view(shape)
    return outputs.to(input.dtype)


def _share(norm: Any) -> float:
    """The weight of this batch in the running statistics; counts it."""
    batches = norm.num_batches_tracked
    if batches is not None:
        batches.add_(1)
    if norm.momentum is not None:
        return norm.momentum
    return 0.0 if batches is None else 1 / int(batches)
