"""Per-example gradients contracted with adjoints: `(d loss_i / d theta) . lambda` for a whole batch at once.

Three ways, all exact. Work for a batch with k adjoints, in forward passes over it (measured on a small convolutional
network on the CPU by `benchmarks/scoring.py`; the counts explain them):

    forward mode     about 1 + 2k: one tangent through the forward pass per adjoint; no gradient is ever stored
    per example      about 7, and 2 k P operations for the product: all gradients at once, [batch, P] in memory
    one by one       a backward pass per example: slow, and works for whatever autograd can differentiate
"""

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad_and_value, jvp, vmap
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from stagetrace.errors import StagetraceError, first_line
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import ParameterSpace, Params
from stagetrace.stages.tangent import directional

Way = Literal["forward mode", "per-example gradients", "one example at a time"]

TANGENTS = 8
"""Adjoints that go through one forward pass together."""

COPIED_AT_ONCE = 2**16
"""Parameters below which several adjoints go through the model as one batch on the CPU too."""

GRADIENT_BYTES = 2**28
"""Memory for the per-example gradients of a batch."""

DISAGREEMENT = 1e-3
"""Over the gradient's norm: how far from plain autograd a way may be on the probe before it counts as wrong; more in
half precision, where the square root of its rounding is allowed."""

FORWARDS_PER_TANGENT = 1.75
FORWARDS_OF_GRADIENTS = 7.0


def contract(
    way: Way, risk: Risk, batch: Batch, adjoints: Tensor, along: Sequence[Params] | None = None
) -> tuple[Tensor, Tensor]:
    """Losses `[batch]` and contractions `[batch, k]` with each adjoint of `[trained.size, k]`.

    along: what `directions` made of the adjoints, so that many batches share it.
    """
    if way == "one example at a time":
        return one_by_one(risk, batch, adjoints)
    with warnings.catch_warnings():  # an operation that cannot be batched (EmbeddingBag) is looped over
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        if way == "forward mode":
            return forward_mode(risk, batch, adjoints, along)
        return per_example(risk, batch, adjoints)


def forward_passes(way: Way, columns: int) -> float:
    """Cost of contracting `columns` adjoints with an example's gradient, counted in forward passes over it."""
    return 1 + 2 * columns if way == "forward mode" else FORWARDS_OF_GRADIENTS


def directions(space: ParameterSpace, adjoints: Tensor) -> tuple[Params, ...] | None:
    """The adjoints as tangents with storage of their own; None where several go through the model as one batch.

    A tangent that is a view of a vector is copied whole for each batch, and `vmap` copies all of them. An example
    touches a few rows of an embedding, so for large tables that copy would be most of the work.
    """
    if adjoints.shape[1] > 1 and (adjoints.device.type != "cpu" or space.size < COPIED_AT_ONCE):
        return None
    return tuple({name: t.clone() for name, t in space.unflatten(one).items()} for one in adjoints.unbind(1))


def forward_mode(
    risk: Risk, batch: Batch, adjoints: Tensor, along: Sequence[Params] | None = None
) -> tuple[Tensor, Tensor]:
    """The directional derivative of the batch's loss vector along each adjoint; `along` as in `contract`."""

    def losses_at(trained: dict[str, Tensor]) -> Tensor:
        return risk.losses(trained, risk.inherited_values, batch)

    def in_batch(direction: Params) -> tuple[Tensor, Tensor]:
        losses, dots, *_ = jvp(losses_at, (risk.trained_values,), (direction,))
        return losses, dots

    with torch.no_grad():
        along = along or directions(risk.trained, adjoints)
        if along is not None:
            found = [directional(losses_at, risk.trained_values, direction) for direction in along]
            return found[0][0], torch.stack([dots for _, dots in found], dim=1)
        blocks = [
            vmap(in_batch, out_dims=(None, 1))(  # pyright: ignore[reportArgumentType]
                risk.trained.unflatten_columns(block)
            )
            for block in adjoints.split(TANGENTS, dim=1)
        ]
    return blocks[0][0], torch.cat([dots for _, dots in blocks], dim=1)


def per_example(risk: Risk, batch: Batch, adjoints: Tensor) -> tuple[Tensor, Tensor]:
    """All gradients of a slice of the batch at once, then one matrix product."""
    rows = max(1, GRADIENT_BYTES // (risk.trained.size * adjoints.element_size()))
    losses, dots = [], []
    for start in range(0, len(batch), rows):
        part = tree_map(lambda leaf: leaf[start : start + rows], batch.content)  # noqa: B023
        gradients, values = vmap(grad_and_value(_single_loss(risk), argnums=0), in_dims=(None, 0))(
            risk.trained_values, part
        )
        losses.append(values)
        dots.append(risk.trained.flatten_columns(gradients).mT @ adjoints)
    return torch.cat(losses).detach(), torch.cat(dots).detach()


def one_by_one(risk: Risk, batch: Batch, adjoints: Tensor) -> tuple[Tensor, Tensor]:
    """A forward and backward pass for each example, read and collated on its own."""
    losses, dots = [], []
    for single in risk.read([[index] for index in batch.indices]):
        with torch.no_grad():
            losses.append(risk.losses(risk.trained_values, risk.inherited_values, single))
        dots.append(batch_gradient(risk, single).trained.mT @ adjoints)
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
    if columns == 1 or risk.trained.size * 8 * 32 > GRADIENT_BYTES:  # fewer than 32 gradients would fit
        return True
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        risk.losses(risk.trained_values, risk.inherited_values, probe)
    forward_pass = max(1, counter.get_total_flops() / len(probe))
    product = 2 * risk.trained.size / forward_pass
    return FORWARDS_PER_TANGENT * columns <= FORWARDS_OF_GRADIENTS + product * columns


def _single_loss(risk: Risk):  # noqa: ANN202
    def loss(trained: dict[str, Tensor], example: object) -> Tensor:
        content = tree_map(lambda leaf: leaf.unsqueeze(0), example)
        return risk.losses(trained, risk.inherited_values, Batch([0], content)).squeeze(0)

    return loss


def _failure(way: Way, risk: Risk, probe: Batch, columns: int) -> str | None:
    """None if the way works on the probe; otherwise what PyTorch says."""
    if way == "per-example gradients":
        leaves = tree_leaves(probe.content)
        if not all(isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == len(probe) for leaf in leaves):
            return "the batch holds more than tensors of one row per example"
    directions = _directions(risk, min(columns, 2))
    try:
        dots = contract(way, risk, probe, directions)[1]
    except StagetraceError:
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as cause:
        return first_line(cause)
    return None if _agrees(dots, risk, probe, directions) else "it gives another derivative than plain autograd"


def _directions(risk: Risk, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(risk.trained.size, columns, generator=generator).to(risk.trained.device, risk.trained.dtype)


def _agrees(dots: Tensor, risk: Risk, probe: Batch, directions: Tensor) -> bool:
    """Whether contractions `[batch, k]` are those of plain autograd: a derivative rule can be wrong and say nothing.

    Directions are standard normal, so a contraction is of the size of its gradient's norm.
    """
    allowed = max(DISAGREEMENT, torch.finfo(dots.dtype).eps ** 0.5)
    for row, single in zip(dots, risk.read([[index] for index in probe.indices]), strict=True):
        gradient = batch_gradient(risk, single).trained
        if bool(((gradient.mT @ directions)[0] - row).abs().max() > allowed * torch.linalg.vector_norm(gradient)):
            return False
    return True
