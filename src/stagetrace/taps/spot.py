"""One example of a batch against plain autograd, now and then while a data set is gone through.

A model may exchange the examples of some batches only: sort those of unequal length, say. Then a layer's rows are other
examples' than they seem to be, which a probe of a few examples need not show.
"""

import torch
from torch import Tensor

from stagetrace.errors import DifferentiationError
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import trained_gradient
from stagetrace.stages.risk import Risk

__all__ = ["CHECKED_EVERY", "check_one"]

CHECKED_EVERY = 64
"""Examples after which another is checked."""

NEAR = 1e-2
"""How far an example's numbers may be from autograd's, relative to the largest of them."""

ROUNDINGS = 1e3
"""Roundings of a product that it may be off by besides; in half precision, the square root of one."""


@torch.no_grad()
def check_one(
    risk: Risk, batch: Batch, found: Tensor, vectors: Tensor | None = None, lengths: Tensor | float = 1.0
) -> None:
    """Compare one of a batch's examples, chosen by the batch's indices.

    Args:
        found: `[batch, k]`: gradients, or their products with `vectors` `[trained.size, k]`.
        lengths: the vectors' norms `[k]`; they cost as much as a product, so whoever checks often has them at hand.

    Raises:
        DifferentiationError: they are not autograd's.
    """
    place = sum(batch.indices) % len(batch)
    gradient = trained_gradient(risk, next(iter(risk.read([[batch.indices[place]]]))))[1].to(found)
    right = gradient if vectors is None else gradient @ vectors.to(found)
    eps = risk.rounding
    size = torch.maximum(right.abs().max(), found[place].abs().max())
    allowed = NEAR * size + min(ROUNDINGS * eps, eps**0.5) * torch.linalg.vector_norm(gradient) * lengths
    if not bool(((found[place] - right).abs() <= allowed).all()):
        raise DifferentiationError(
            f"{risk.where}: the gradient of example {batch.indices[place]}, taken layer by layer in a batch of "
            f"{len(batch)}, is not that of the example by itself: in some batches the model changes the order of the "
            "examples (sorts them by length, say) or mixes them; give the data a batch_size of 1"
        )
