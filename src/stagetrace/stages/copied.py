"""The library's own copy of a model, which shares the memory of its parameters."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from stagetrace.errors import DescriptionError
from stagetrace.stages.sparse import compressed_copies


def private_copy(model: nn.Module, where: str) -> nn.Module:
    """A copy in eval mode: the user's own keeps its mode, its hooks' state and its buffers.

    Raises:
        DescriptionError: the model cannot be copied; says why.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    memo |= compressed_copies(model)
    memo |= {id(tensor): tensor.detach() for tensor in _recomputed(model)}
    try:
        return copy.deepcopy(model, memo).eval()
    except Exception as cause:
        raise DescriptionError(
            f"{where}: the model cannot be copied ({type(cause).__name__}: {cause}); the library evaluates a "
            "copy in eval mode, so remove tensors with a gradient history and other uncopyable attributes from it"
        ) from cause


def _recomputed(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that a hook recomputes before each call (old weight norm, spectral norm, pruning): no state to copy."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():  # pyright: ignore[reportPrivateUsage]
            name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
            made = vars(module).get(name) if isinstance(name, str) else None
            if isinstance(made, Tensor) and made.grad_fn is not None:
                yield made
