"""Per-example gradients contracted with adjoints: `(d loss_i / d theta) . lambda` for a whole batch at once.

Three ways, all exact. Work for a batch with k adjoints, in forward passes over it (measured on a small convolutional
network on the CPU by `benchmarks/scoring.py`; the counts explain them):

    forward mode     about 1 + 2k: one tangent through the forward pass per adjoint; no gradient is ever stored
    per example      about 7, and 2 k P operations for the product: all gradients at once, [batch, P] in memory
    one by one       a backward pass per example: slow, and works for whatever autograd can differentiate
"""

import warnings
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad_and_value, jvp, vmap
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from stagetrace.curvature.plan import first_line
from stagetrace.errors import StagetraceError
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.risk import Risk
from stagetrace.tracing.tangent import directional

Way = Literal["forward mode", "per-example gradients", "one example at a time"]

TANGENTS = 8
"""Adjoints that go through one forward pass together."""

GRADIENT_BYTES = 2**28
"""Memory for the per-example gradients of a batch."""

FORWARDS_PER_TANGENT = 1.75
FORWARDS_OF_GRADIENTS = 7.0


def contract(way: Way, risk: Risk, batch: Batch, adjoints: Tensor) -> tuple[Tensor, Tensor]:
    """Losses `[batch]` and contractions `[batch, k]` with each adjoint of `[own.size, k]`."""
    if way == "one example at a time":
        return one_by_one(risk, batch, adjoints)
    with warnings.catch_warnings():  # an operation that cannot be batched (EmbeddingBag) is looped over
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        return forward_mode(risk, batch, adjoints) if way == "forward mode" else per_example(risk, batch, adjoints)


def forward_passes(way: Way, columns: int) -> float:
    """Cost of contracting `columns` adjoints with an example's gradient, counted in forward passes over it."""
    return 1 + 2 * columns if way == "forward mode" else FORWARDS_OF_GRADIENTS


def forward_mode(risk: Risk, batch: Batch, adjoints: Tensor) -> tuple[Tensor, Tensor]:
    """The directional derivative of the batch's loss vector along each adjoint."""

    def losses_at(own: dict[str, Tensor]) -> Tensor:
        return risk.losses(own, risk.inherited_values, batch)

    def along(direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        losses, dots, *_ = jvp(losses_at, (risk.own_values,), (direction,))
        return losses, dots

    with torch.no_grad():
        if adjoints.shape[1] == 1:
            losses, dots = directional(losses_at, risk.own_values, risk.own.unflatten(adjoints[:, 0]))
            return losses, dots.unsqueeze(1)
        blocks = [
            vmap(along, out_dims=(None, 1))(  # pyright: ignore[reportArgumentType]
                risk.own.unflatten_columns(block)
            )
            for block in adjoints.split(TANGENTS, dim=1)
        ]
    return blocks[0][0], torch.cat([dots for _, dots in blocks], dim=1)


def per_example(risk: Risk, batch: Batch, adjoints: Tensor) -> tuple[Tensor, Tensor]:
    """All gradients of a slice of the batch at once, then one matrix product."""
    rows = max(1, GRADIENT_BYTES // (risk.own.size * adjoints.element_size()))
    losses, dots = [], []
    for start in range(0, len(batch), rows):
        part = tree_map(lambda leaf: leaf[start : start + rows], batch.content)  # noqa: B023
        gradients, values = vmap(grad_and_value(_single_loss(risk), argnums=0), in_dims=(None, 0))(
            risk.own_values, part
        )
        losses.append(values)
        dots.append(risk.own.flatten_columns(gradients).mT @ adjoints)
    return torch.cat(losses).detach(), torch.cat(dots).detach()


def one_by_one(risk: Risk, batch: Batch, adjoints: Tensor) -> tuple[Tensor, Tensor]:
    """A forward and backward pass for each example, read and collated on its own."""
    losses, dots = [], []
    for single in risk.read([[index] for index in batch.indices]):
        with torch.no_grad():
            losses.append(risk.losses(risk.own_values, risk.inherited_values, single))
        dots.append(batch_gradient(risk, single).own.mT @ adjoints)
    return torch.cat(losses), torch.cat(dots)


def choose(risk: Risk, probe: Batch, columns: int) -> tuple[Way, str]:
    """The way to contract `columns` adjoints, and why: decided on a probe batch, by counted operations."""
    forward = _failure("forward mode", risk, probe, columns)
    if forward is None and _forward_is_cheaper(risk, probe, columns):
        return "forward mode", f"fewest operations for {columns} adjoint{'s' if columns > 1 else ''}"
    gradients = _failure("per-example gradients", risk, probe, columns)
    if forward is None and gradients is not None:
        return "forward mode", f"no batched gradients: {gradients}"
    if gradients is None:
        return "per-example gradients", f"no forward mode: {forward}" if forward else f"{columns} adjoints share them"
    return "one example at a time", f"no forward mode ({forward}) and no batched gradients ({gradients})"


def _forward_is_cheaper(risk: Risk, probe: Batch, columns: int) -> bool:
    """Compare `1.75 k` forward passes with 7 and the product with the `[P, k]` adjoints, counted in operations."""
    if columns == 1 or risk.own.size * 8 * 32 > GRADIENT_BYTES:  # fewer than 32 gradients would fit
        return True
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        risk.losses(risk.own_values, risk.inherited_values, probe)
    forward_pass = max(1, counter.get_total_flops() / len(probe))
    product = 2 * risk.own.size / forward_pass
    return FORWARDS_PER_TANGENT * columns <= FORWARDS_OF_GRADIENTS + product * columns


def _single_loss(risk: Risk):  # noqa: ANN202
    def loss(own: dict[str, Tensor], example: object) -> Tensor:
        content = tree_map(lambda leaf: leaf.unsqueeze(0), example)
        return risk.losses(own, risk.inherited_values, Batch([0], content)).squeeze(0)

    return loss


def _failure(way: Way, risk: Risk, probe: Batch, columns: int) -> str | None:
    """None if the way works on the probe; otherwise what PyTorch says."""
    if way == "per-example gradients":
        leaves = tree_leaves(probe.content)
        if not all(isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == len(probe) for leaf in leaves):
            return "the batch holds more than tensors of one row per example"
    try:
        contract(way, risk, probe, risk.own.zeros(min(columns, 2)))
    except StagetraceError:
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as cause:
        return first_line(cause)
    return None
