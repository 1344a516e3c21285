"""Matrix products in bfloat16, by choice: parameters, vectors, gradients, tangents, sums and losses stay float32.

Each product of a model (a linear layer, a convolution, the two of attention) rounds what it is given to bfloat16 and
gives float32. The roundings are operations of the graph whose derivative is the identity, so that every derivative's
products round what they are given, too, and what lies between two products (norms, activations, the residual sum, their
tangents and cotangents) has the digits of float32.

`torch.autocast` alone is not enough. Its products give bfloat16, and so do all operations between two of them: on small
models in the shapes of GPT-2, Llama and BERT the derivative along a direction was off by 1.3, 1.8 and 0.5 % in place of
1.0, 1.1 and 0.4 %; and which operations it widens differs between CPU and CUDA. Products stay symmetric in both ways:
`u' H v` and `v' H u` agreed to 1 % or less of the products' sizes. What it breaks is tracing: `torch.func.linearize`
rounds a value and leaves its tangent as it is, and their product fails ("expected scalar type Float but found
BFloat16").

It stays on around the products here all the same. Models switch it off where single precision must be kept (the angles
of rotary positions, which would be off by whole positions), and so that is known; and what hides its products inside
one call (`nn.MultiheadAttention`, recurrent layers) is left to it.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from stagetrace.errors import refuse

__all__ = ["PRECISIONS", "Precision", "check_precision", "check_precision_fits", "products_in", "widened"]

Precision = Literal["bf16"]

PRECISIONS: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16}
"""What matrix products are rounded to, by the word that a user types."""

PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.linear,
        F.bilinear,
        F.conv1d,
        F.conv2d,
        F.conv3d,
        F.conv_transpose1d,
        F.conv_transpose2d,
        F.conv_transpose3d,
        torch.einsum,
        *(getattr(torch, name) for name in ("matmul", "mm", "bmm", "mv", "addmm", "addbmm", "baddbmm")),
        *(getattr(Tensor, name) for name in ("matmul", "mm", "bmm", "mv", "addmm", "addbmm", "baddbmm")),
        Tensor.__matmul__,
        Tensor.__rmatmul__,
    }
)


def check_precision(given: object, where: str) -> None:
    """Refuse anything but None and a word that is known.

    Raises:
        DescriptionError: with the words there are.
    """
    if given is not None and given not in PRECISIONS:
        refuse(
            f"{where}: precision must be {' or '.join(map(repr, PRECISIONS))} (matrix products in bfloat16), or None "
            f"for that of the parameters, got {given!r}"
        )


def check_precision_fits(precision: Precision | None, dtype: torch.dtype, where: str, *, recorded: bool) -> None:
    """Refuse a chosen precision where it would not be that of what is computed.

    dtype: of the parameters. recorded: whether the stage is differentiated through its recorded training.

    Raises:
        DescriptionError: the parameters are not float32, or the training was recorded.
    """
    if precision is None:
        return
    if recorded:
        refuse(
            f"{where} is differentiated through its recorded steps, in the precision they were trained in; leave out "
            f"precision={precision!r}"
        )
    if dtype != torch.float32:
        refuse(
            f"{where}: precision={precision!r} rounds the products of float32 parameters, got "
            f"{str(dtype).removeprefix('torch.')}; leave it out, or give model.float()"
        )


@contextmanager
def products_in(precision: Precision, device: torch.device) -> Generator[None]:
    """Have a model's matrix products computed in a precision."""
    dtype = PRECISIONS[precision]
    # a cast that was kept for the next use would outlive the transform that it was made in
    with torch.autocast(device.type, dtype, cache_enabled=False), _RoundedProducts(device.type, dtype):
        yield


def widened(outputs: Any) -> Any:
    """Outputs in float32, where the model's last operation left them in bfloat16."""
    coarse = isinstance(outputs, Tensor) and outputs.dtype in PRECISIONS.values()
    return outputs.float() if coarse else outputs


@final
class _RoundedProducts(TorchFunctionMode):
    """Rounds what a matrix product is given, and widens what it gives; all else is computed as it is."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.device, self.dtype = device, dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func not in PRODUCTS and func is not F.scaled_dot_product_attention:
            return func(*args, **options)
        wide = any(isinstance(leaf, Tensor) and leaf.dtype == torch.float32 for leaf in tree_leaves((args, options)))
        if not (wide and torch.is_autocast_enabled(self.device)) or "out" in options:
            return func(*args, **options)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **options)
        return self._product(func, *args, **options)

    def _product(self, func: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        rounded = tree_map(self._rounded, (args, options))
        return func(*rounded[0], **rounded[1]).float()

    def _rounded(self, leaf: Any) -> Any:
        return leaf.to(self.dtype) if isinstance(leaf, Tensor) and leaf.dtype == torch.float32 else leaf

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`softmax(scale Q K' + mask) V`, its softmax in single precision; a query that may see nothing gets zeros."""
        if dropout_p:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (each.repeat_interleave(repeats, -3) for each in (key, value))
        logits = self._product(torch.matmul, query, key.mT) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        blind = None
        if attn_mask is not None:
            seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask > float("-inf")
            blind = ~seen.any(dim=-1, keepdim=True)
            if attn_mask.dtype != torch.bool:
                logits = logits + attn_mask.masked_fill(~seen, 0.0)
            logits = logits.masked_fill(~(seen | blind), float("-inf"))
        weights = logits.softmax(dim=-1)
        return self._product(torch.matmul, weights if blind is None else weights.masked_fill(blind, 0.0), value)
