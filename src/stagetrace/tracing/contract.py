"""Per-example gradients contracted with adjoints: `(d loss_i / d theta) . lambda` for a whole batch at once.

Four ways, all exact. Work for a batch with k adjoints, in forward passes over it (measured on a small convolutional
network on the CPU by `benchmarks/scoring.py`; the counts explain them):

    forward mode     about 1 + 2k: one tangent through the forward pass per adjoint; no gradient is ever stored
    layer by layer   about 5, and 2 k P operations for the products: a forward and a backward pass without the weights'
                     gradients, then each layer's gradients from what it was given and the gradients in what it gave
    per example      about 7, and 2 k P operations for the product: all gradients at once, [batch, P] in memory
    one by one       about 5, and as many for the product: a backward pass per example, for whatever autograd can
                     differentiate; for small models slow all the same, since each example is a call of its own

Where the gradients of fewer than `AT_ONCE` examples would fit into memory the model is large, and one by one takes the
place of per example. Layer by layer needs models of known layers (`taps`), which are probed.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vmap

from stagetrace.curvature.operations import counted_operations
from stagetrace.errors import DifferentiationError, StagetraceError, first_line
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import batch_gradient, trained_gradient
from stagetrace.stages.per_example import example_gradients, inseparable, taken
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import ParameterSpace, Params
from stagetrace.stages.tangent import directional
from stagetrace.taps import Contraction, Tapped, tap, uncovered
from stagetrace.taps.groups import groups_of

Way = Literal["forward mode", "layer by layer", "per-example gradients", "one example at a time"]

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
FORWARDS_BY_LAYER = 5.0
FORWARDS_ONE_BY_ONE, FORWARDS_PER_LARGE_TANGENT, FORWARDS_BY_LARGE_LAYER = 5.0, 2.75, 3.0
"""The same of large models, whose tangents go through the model one by one (`benchmarks/adjoints.py`)."""

AT_ONCE = 32
"""Examples whose gradients must fit into `GRADIENT_BYTES` for all to be taken at once."""


def contraction(
    way: Way, risk: Risk, adjoints: Tensor, tapped: Tapped | None = None
) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    """What gives a batch's losses `[batch]` and contractions `[batch, k]` with each adjoint of `[trained.size, k]`.

    Whatever of it many batches share is prepared here. tapped: the model for the way layer by layer, if it is at hand.
    """
    if way == "layer by layer":
        return Contraction(tapped or tap(risk), adjoints)
    along = directions(risk.trained, adjoints) if way == "forward mode" else None
    return lambda batch: contract(way, risk, batch, adjoints, along)


def contract(
    way: Way, risk: Risk, batch: Batch, adjoints: Tensor, along: Sequence[Params] | None = None
) -> tuple[Tensor, Tensor]:
    """Losses `[batch]` and contractions `[batch, k]` with each adjoint of `[trained.size, k]`.

    along: what `directions` made of the adjoints, so that many batches share it.
    """
    if way == "one example at a time":
        return one_by_one(risk, batch, adjoints)
    if way == "layer by layer":
        return layer_by_layer(risk, batch, adjoints)
    with warnings.catch_warnings():  # an operation that cannot be batched (EmbeddingBag) is looped over
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        if way == "forward mode":
            return forward_mode(risk, batch, adjoints, along)
        return per_example(risk, batch, adjoints)


def forward_passes(way: Way, columns: int) -> float:
    """Cost of contracting `columns` adjoints with an example's gradient, counted in forward passes over it."""
    known = {
        "per-example gradients": FORWARDS_OF_GRADIENTS,
        "one example at a time": FORWARDS_ONE_BY_ONE,
        "layer by layer": FORWARDS_BY_LAYER,
    }
    return known.get(way, 1.0 + 2 * columns)


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
        some = slice(start, start + rows)
        values, gradients, _ = example_gradients(risk, Batch(batch.indices[some], taken(batch, some)))
        losses.append(values)
        dots.append(risk.trained.flatten_columns(gradients).mT @ adjoints)
    return torch.cat(losses), torch.cat(dots).detach()


def layer_by_layer(risk: Risk, batch: Batch, adjoints: Tensor) -> tuple[Tensor, Tensor]:
    """One forward and one backward pass without the weights' gradients, and a product for each layer."""
    return Contraction(tap(risk), adjoints)(batch)


def one_by_one(risk: Risk, batch: Batch, adjoints: Tensor) -> tuple[Tensor, Tensor]:
    """A forward and backward pass for each example, read and collated on its own."""
    losses, dots = [], []
    for single in risk.read([[index] for index in batch.indices]):
        loss, gradient = trained_gradient(risk, single)
        losses.append(loss)
        dots.append(gradient @ adjoints)
    return torch.stack(losses), torch.stack(dots)


class Choice(NamedTuple):
    """The way to contract, and why. tapped: the model, where the way is layer by layer."""

    way: Way
    why: str
    tapped: Tapped | None = None


def choose(risk: Risk, probe: Batch, columns: int) -> Choice:
    """The way to contract `columns` adjoints with the fewest counted operations, and why.

    Only those are chosen that give plain autograd's derivatives on the probe.
    """
    costs = counted_passes(risk, probe, columns)
    failed: dict[Way, str] = {}
    for way in sorted(costs, key=lambda way: costs[way]):
        if way == "one example at a time":  # plain autograd itself
            break
        tapped = _tapped(risk) if way == "layer by layer" else None
        failure = tapped if isinstance(tapped, str) else _failure(way, risk, probe, columns, tapped)
        if failure is None:
            assert not isinstance(tapped, str)
            return Choice(way, _reason(way, failed, columns), tapped)
        failed[way] = failure
    return Choice("one example at a time", _reason("one example at a time", failed, columns))


WITHOUT: dict[Way, str] = {
    "forward mode": "no forward mode",
    "layer by layer": "not layer by layer",
    "per-example gradients": "no batched gradients",
}
"""How a reason begins that speaks against a way."""


def _reason(way: Way, failed: Mapping[Way, str], columns: int) -> str:
    """Why this way: what spoke against cheaper ones, or that it is the cheapest."""
    if len(failed) == 1:
        return "".join(f"{WITHOUT[each]}: {why}" for each, why in failed.items())
    if failed:
        return " and ".join(f"{WITHOUT[each]} ({why})" for each, why in failed.items())
    adjoints = f"{columns} adjoint{'s' if columns > 1 else ''}"
    if way == "forward mode":
        return f"fewest operations for {adjoints}"
    return f"{adjoints} share a gradient" if way == "one example at a time" else f"{adjoints} share them"


def counted_passes(risk: Risk, probe: Batch, columns: int) -> dict[Way, float]:
    """What contracting `columns` adjoints takes by each way, in forward passes over an example."""
    forward_pass = max(1, counted_operations(risk, probe) / len(probe))
    product = 2 * risk.trained.size / forward_pass
    tables = sum(group.layout.size for group in groups_of(risk) if group.looks_up_alone)
    touched = 2 * (risk.trained.size - tables) / forward_pass
    large = risk.trained.size * 8 * AT_ONCE > GRADIENT_BYTES
    # of a large model each gradient is written and read as a whole, which a product with a column does no less
    gradient = FORWARDS_ONE_BY_ONE + 2 * product if large else FORWARDS_OF_GRADIENTS
    tangent = FORWARDS_PER_LARGE_TANGENT if large else FORWARDS_PER_TANGENT
    return {
        "forward mode": columns * tangent,
        "layer by layer": (FORWARDS_BY_LARGE_LAYER if large else FORWARDS_BY_LAYER) + touched * columns,
        "per-example gradients": float("inf") if large else gradient + product * columns,
        "one example at a time": gradient + product * columns if large else float("inf"),
    }


def _tapped(risk: Risk) -> Tapped | str:
    """The model with its taps, or why they do not cover it."""
    try:
        tapped = tap(risk)
    except DifferentiationError as cause:
        return first_line(cause)
    return uncovered(tapped) or tapped


def _failure(way: Way, risk: Risk, probe: Batch, columns: int, tapped: Tapped | None = None) -> str | None:
    """None if the way works on the probe; otherwise what PyTorch says."""
    if way == "per-example gradients":
        why = inseparable(probe)
        if why:
            return why
    risk = risk.unweighted  # an example of weight 0 would agree, whatever it is multiplied by
    tapped = None if tapped is None else replace(tapped, risk=risk)
    directions = _directions(risk, min(columns, 2))
    try:
        dots = contraction(way, risk, directions, tapped)(probe)[1]
    except StagetraceError as cause:
        if way == "layer by layer" and isinstance(cause, DifferentiationError):
            return first_line(cause)
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as cause:
        return first_line(cause)
    if not _agrees(dots, risk, probe, directions):
        return "it gives another derivative than plain autograd"
    # where products are rounded, the same once more without: rounding would hide a small difference (`tap` has looked)
    return None if risk.exact is risk or tapped is not None else _failure(way, risk.exact, probe, columns)


def _directions(risk: Risk, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(risk.trained.size, columns, generator=generator).to(risk.trained.device, risk.trained.dtype)


def _agrees(dots: Tensor, risk: Risk, probe: Batch, directions: Tensor) -> bool:
    """Whether contractions `[batch, k]` are those of plain autograd: a derivative rule can be wrong and say nothing.

    Directions are standard normal, so a contraction is of the size of its gradient's norm.
    """
    allowed = max(DISAGREEMENT, risk.rounding**0.5)
    for row, single in zip(dots, risk.read([[index] for index in probe.indices]), strict=True):
        gradient = batch_gradient(risk, single).trained
        if bool(((gradient.mT @ directions)[0] - row).abs().max() > allowed * torch.linalg.vector_norm(gradient)):
            return False
    return True
