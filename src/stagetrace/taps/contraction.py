"""Whole per-example gradients of losses from taps: contracted with vectors, or as they are."""

from collections.abc import Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import DifferentiationError, first_line
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import trained_gradient
from stagetrace.stages.risk import Risk
from stagetrace.taps.find import Tapped
from stagetrace.taps.gradients import BYTES, Sums, wide
from stagetrace.taps.groups import Group
from stagetrace.taps.inside import UnseenError
from stagetrace.taps.products import GroupProducts, GroupRows
from stagetrace.taps.record import Record
from stagetrace.taps.spot import CHECKED_EVERY, check_one

__all__ = ["Contraction", "check_covered", "gradient_rows", "output_rows", "uncovered"]

MIXED = 8
"""Combinations of the vectors that an example is checked on."""


def uncovered(tapped: Tapped) -> str | None:
    """Why a model's losses cannot be differentiated by its taps alone; None where they can."""
    for group in tapped.rest:
        return f"'{group.names[0]}' is not tapped: {group.why}"
    for group in tapped.tapped:
        if group.how == "module" and _mostly(tapped, group):
            return f"'{group.names[0]}' is not tapped: it belongs to no layer, but to {group.where}"
    if tapped.taps.scatters:
        places = (place for place, axis in tapped.taps.axes.items() if axis == "elsewhere")
        return f"the output of '{next(places)}' does not have the examples first"
    return None


def _mostly(tapped: Tapped, group: Group) -> bool:
    """Whether the modules that hold a group's parameters, which are run once more, are most of the model."""
    rerun = {id(p): p.numel() for use in group.uses for p in use.module.parameters()}
    own = group.layout.size  # a module of its own parameters alone is cheap, however large
    return sum(rerun.values()) > max(own, tapped.risk.trained.size // 2)


def check_covered(tapped: Tapped) -> None:
    """Refuse a model that is not tapped wholly.

    Raises:
        DifferentiationError: says what is not.
    """
    why = uncovered(tapped)
    if why:
        raise DifferentiationError(
            f"{tapped.risk.where}: no gradients layer by layer: {why}; take another way to contract them"
        )


@final
class Contraction:
    """`(d loss_i / d theta) . v_k` for every example of a batch: one forward and one backward pass, then a product for
    each group.

    Args:
        tapped: a model that its taps cover.
        vectors: `[trained.size, k]`.

    Raises:
        DifferentiationError: the taps do not cover the model.
    """

    def __init__(self, tapped: Tapped, vectors: Tensor) -> None:
        check_covered(tapped)
        self.tapped = tapped
        columns = wide(vectors).contiguous()
        self._width, self._like = columns.shape[1], columns
        self._groups = [GroupProducts(group, columns) for group in tapped.tapped]
        self._unchecked = CHECKED_EVERY

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Losses `[batch]` and contractions `[batch, k]`.

        Raises:
            DifferentiationError: the gradients in the layers' outputs cannot be taken, or an example's gradient is not
                autograd's.
        """
        try:
            losses, found = self._by_layer(batch)
        except UnseenError:  # a batch that uses the layers in other ways than the others
            return _one_by_one(self.tapped.risk, batch, self._like)
        self._unchecked += len(batch)
        if self._unchecked >= CHECKED_EVERY and len(batch) > 1:
            self._unchecked = 0
            mix, mixed, lengths = self._mixtures
            check_one(self.tapped.risk, batch, found @ mix, mixed, lengths)
        return losses, found

    @cached_property
    def _mixtures(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of many vectors, random combinations for the check to look at, which then costs the same for any number.

        Their weights `[k, m]`, over the vectors' lengths so that each counts as much; the combinations
        `[trained.size, m]`, and their lengths.
        """
        pieces = self._like.split(max(1, BYTES // 512 // self._width))  # as much as stays in a processor's cache
        lengths = torch.stack([piece.square().sum(dim=0) for piece in pieces]).sum(dim=0).sqrt()
        weights = torch.eye(self._width)
        if self._width > MIXED:
            weights = torch.randn(self._width, MIXED, generator=torch.Generator().manual_seed(0))
        weights = weights.to(self._like) * torch.where(lengths > 0, 1 / lengths, 0.0).unsqueeze(1)
        mixed = self._like @ weights
        return weights, mixed, mixed.norm(dim=0)

    def _by_layer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        record, losses, slopes = _recorded(self.tapped, batch)
        found = self._like.new_zeros(len(batch), self._width)
        with torch.no_grad():
            gradients = record.gradients(slopes, keep=False)
            owners = record.owners()
            for each in self._groups:  # one after the other, so that one layer's rows are held at a time
                each.add(Sums(each.group, record, owners), gradients, found)
        return losses, found


def gradient_rows(tapped: Tapped, batch: Batch) -> tuple[Tensor, Tensor]:
    """Losses `[batch]` and each one's gradient, `[batch, trained.size]`.

    Raises:
        DifferentiationError: as `Contraction`.
    """
    check_covered(tapped)
    try:
        record, losses, slopes = _recorded(tapped, batch)
        rows = output_rows(tapped, record, slopes)
    except UnseenError:
        return _one_by_one(tapped.risk, batch)
    if len(batch) > 1:
        check_one(tapped.risk, batch, rows)
    return losses, rows


@torch.no_grad()
def output_rows(tapped: Tapped, record: Record, cotangent: Tensor, sums: Sequence[Sums] | None = None) -> Tensor:
    """The gradient of every example's `<outputs_i, cotangent_i>`, `[batch, trained.size]`, of a covered model.

    sums: `tapped.sums(record)`, for several cotangents.
    """
    gradients, space = record.gradients(cotangent), tapped.risk.trained
    found = wide(torch.zeros(record.size, space.size, dtype=space.dtype, device=space.device))
    for each in sums or tapped.sums(record):
        GroupRows(each.group).add(each, gradients, found)
    return found


def _recorded(tapped: Tapped, batch: Batch) -> tuple[Record, Tensor, Tensor]:
    """The forward pass, the losses `[batch]`, and the gradient of their sum in the outputs."""
    record = tapped.taps.record(batch)
    if record.scattered:
        raise UnseenError(f"{tapped.risk.where}: a layer gave rows that are not one for each example")
    outputs = record.outputs.detach().requires_grad_()
    try:
        with torch.enable_grad():
            losses = tapped.risk.reduce(outputs, batch)
            (slopes,) = (
                torch.autograd.grad(losses.sum(), (outputs,), materialize_grads=True)
                if losses.requires_grad
                else (torch.zeros_like(outputs),)
            )
    except (RuntimeError, NotImplementedError) as cause:
        raise DifferentiationError(
            f"{tapped.risk.where}: the gradient of the loss in the outputs cannot be taken ({first_line(cause)})"
        ) from cause
    return record, losses.detach(), slopes


def _one_by_one(risk: Risk, batch: Batch, vectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Losses `[batch]` and gradients `[batch, trained.size]` by plain autograd, example by example.

    vectors: `[trained.size, k]`; each gradient is multiplied with them at once, and `[batch, k]` is what is held.
    """
    losses, found = list[Tensor](), list[Tensor]()
    for single in risk.read([[index] for index in batch.indices]):
        loss, gradient = trained_gradient(risk, single)
        losses.append(loss)
        found.append(wide(gradient) if vectors is None else gradient.to(vectors.dtype) @ vectors)
    return torch.stack(losses), torch.stack(found)
