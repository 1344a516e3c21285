"""Derivatives of every example of a batch by themselves, all at once: `vmap` over the examples of a batch.

Right only where a model treats examples apart and `vmap` knows its operations, so whoever uses it compares a few
examples with plain autograd first.
"""

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params

__all__ = ["example_gradients", "inseparable", "output_gradients", "taken"]


def inseparable(batch: Batch) -> str | None:
    """Why a batch cannot be taken apart into examples; None if it can."""
    leaves = tree_leaves(batch.content)
    if all(isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == len(batch) for leaf in leaves):
        return None
    return "the batch holds more than tensors of one row per example"


def taken(batch: Batch, which: Tensor | slice) -> Any:
    """The content of some of a batch's examples, in this order and as often as they are named."""
    return tree_map(lambda leaf: leaf[which], batch.content)


def example_gradients(risk: Risk, batch: Batch, inherited: Params | None = None) -> tuple[Tensor, Params, Params]:
    """Losses `[b]`, and each one's gradient in the trained and in inherited parameters, `[b, *shape]` by name.

    batch: one that can be taken apart. inherited: the values to differentiate at, too; none by default.
    """
    plain = risk.unweighted  # within `vmap` nobody knows which example it is
    weights = risk.weights_of(batch, risk.trained.zeros(0))
    factors = risk.trained.zeros(len(batch)).new_ones(len(batch)) if weights is None else weights

    def loss(trained: Params, beside: Params, example: Any, factor: Tensor) -> Tensor:
        losses = plain.losses(trained, {**risk.inherited_values, **beside}, _single(example)).squeeze(0)
        return losses if weights is None else losses * factor

    with _looped():
        found, losses = vmap(grad_and_value(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))(
            risk.trained_values, inherited or {}, batch.content, factors
        )
    trained, beside = found
    return losses.detach(), trained, beside


def output_gradients(risk: Risk, content: Any, weights: Tensor) -> Params:
    """The gradient of each example's `weights[i] . outputs[i]` in the trained parameters, `[b, *shape]` by name.

    weights: `[b, *an example's outputs]`.
    """

    def weighted(trained: Params, example: Any, weight: Tensor) -> Tensor:
        return (risk.outputs(trained, risk.inherited_values, _single(example)).squeeze(0) * weight).sum()

    with _looped():
        gradient: Callable[..., Params] = vmap(grad(weighted), in_dims=(None, 0, 0))
        return gradient(risk.trained_values, content, weights)


def _single(example: Any) -> Batch:
    return Batch([0], tree_map(lambda leaf: leaf.unsqueeze(0), example))


@contextmanager
def _looped() -> Generator[None, None, None]:
    """An operation that cannot be batched (EmbeddingBag) is looped over, and PyTorch says so."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        yield
