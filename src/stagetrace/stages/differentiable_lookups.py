"""Lookups in a table of vectors, computed so that every derivative exists: on the library's own copy of a model only.

`nn.EmbeddingBag` has a fused kernel with neither forward mode nor a second derivative; `sparse=True` gives gradients of
another layout; `max_norm` writes into the table while it is read. `scale_grad_by_freq=True` divides a row's gradient by
how often the batch has it, which is no derivative of the loss. `padding_idx` makes a row a constant, but PyTorch keeps
to that in reverse mode only.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import refuse

CLIPPED = 1e-4
"""How far over `max_norm` a row's norm may be, relatively: what rounding leaves after clipping."""


def replace_lookups(model: nn.Module, where: str) -> nn.Module:
    """The same function of the parameters, with lookups that can be differentiated in every way; changes `model`.

    Raises:
        DescriptionError: a row of a table with `max_norm` is longer than that.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            module.sparse = False  # says how gradients are stored, not what they are
            module.scale_grad_by_freq = False
            if module.max_norm is not None:
                _check_clipped(name, module.weight, module.max_norm, module.norm_type, where)
                module.max_norm = None
        if type(module) is nn.EmbeddingBag:
            module.__class__ = DifferentiableEmbeddingBag
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.register_forward_hook(_constant_padding, with_kwargs=True)
    return model


def _constant_padding(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
    """The looked-up vectors, without a derivative where they are the padding's: work of the batch, not of the table."""
    looked_up = args[0] if args else kwargs["input"]
    return torch.where((looked_up == module.padding_idx).unsqueeze(-1), output.detach(), output)


def _check_clipped(name: str, table: Tensor, max_norm: float, norm_type: float, where: str) -> None:
    """A table within its norm is a plain one; clipping another while it is read would change the user's parameters."""
    longest = float(torch.linalg.vector_norm(table.detach(), norm_type, dim=1).max())
    if longest > max_norm * (1 + CLIPPED):
        refuse(
            f"{where}: embedding '{name}' has max_norm={max_norm:g}, but a row of norm {longest:g}, which would be "
            f"clipped while it is read; clip it once before the trace: with torch.no_grad(): model.{name}.weight.copy_("
            f"torch.renorm(model.{name}.weight, {norm_type:g}, 0, {max_norm:g}))"
        )


@final
class DifferentiableEmbeddingBag(nn.EmbeddingBag):
    """`nn.EmbeddingBag` by a lookup and a sum, a mean or a maximum over each bag."""

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        if input.ndim == 1 and self.mode == "max":
            return super().forward(input, offsets, per_sample_weights)
        vectors = F.embedding(input, self.weight)
        counted = torch.ones_like(input) if self.padding_idx is None else input != self.padding_idx
        if self.mode == "max":
            low = vectors.masked_fill(~counted.bool().unsqueeze(-1), -torch.inf).amax(dim=1)
            return torch.where(counted.any(dim=1, keepdim=True), low, 0.0)
        weights = counted.to(vectors.dtype) if per_sample_weights is None else counted * per_sample_weights
        weighted, counts = vectors * weights.unsqueeze(-1), counted.to(vectors.dtype)
        if input.ndim == 2:
            total, number = weighted.sum(dim=1), counts.sum(dim=1)
        else:
            total, number = self._by_offsets(weighted, counts, offsets)
        return total / number.clamp_min(1).unsqueeze(-1) if self.mode == "mean" else total

    def _by_offsets(self, weighted: Tensor, counts: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums over bags that lie one after the other, of vectors `[n, dim]` and of ones `[n]`."""
        assert offsets is not None  # as the layer itself demands
        starts = offsets[:-1] if self.include_last_offset else offsets
        bag = torch.searchsorted(starts, torch.arange(len(weighted), device=starts.device), right=True) - 1
        total = weighted.new_zeros(len(starts), weighted.shape[1]).index_add(0, bag, weighted)
        return total, counts.new_zeros(len(starts)).index_add(0, bag, counts)
