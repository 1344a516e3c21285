"""Factors of a loss's second derivative in the outputs: columns u with `sum u u' = d2 loss_i / d outputs_i2`.

They are read off the loss itself, whatever its class, its weights, masks and reduction, by products with its second
derivative in the outputs, which cost next to nothing beside the model. Three kinds of losses are told apart:

    few outputs    at most 32 numbers per example: the matrix H_i is written out, and its columns are
                   `sqrt(w_k) v_k` of its eigenvectors. Exact: the expectation over labels, and any other loss's matrix.
    elementwise    H_i is a diagonal h (squared errors, a logit for each label): `sqrt(h) s` with random signs s,
                   whose expectation of `u u'` is H_i.
    softmax        H_i is `w_t (diag p_t - p_t p_t')` at each position t. Of at most 32 classes a column for each class,
                   `sqrt(w_t p_tc) s_tc (e_c - p_t)`; of more `sqrt(w_t) (p_t - e_y)` for labels y drawn from p_t.

The weights w_t are 1/tokens where a mean over an example's tokens is taken, and 0 at padding: the square root of what
the loss multiplies, since the factor is squared and the loss is not.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import first_line, refuse
from stagetrace.objectives.objective import name_of
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk

__all__ = ["AGREEMENT", "FEW", "Elementwise", "Factor", "FewOutputs", "Softmax", "factor_of"]

FEW = 32
"""Outputs of an example, or classes, up to which nothing is drawn."""

AGREEMENT = 1e-3
"""How far a product with the loss's second derivative may be from the kind's formula, relatively."""


KEPT = 2**26
"""Bytes of weights that are kept from one pass to the next: one number a token."""


class Factor(ABC):
    """Columns of the factor for a batch: each `[batch, ...]` in the shape of the outputs."""

    exact = False
    """Whether `sum u u'` is the matrix itself, and not in expectation only."""

    @abstractmethod
    def columns(self, risk: Risk, batch: Batch, outputs: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
        """The columns at these outputs; draws: how many of a random kind, each divided by the root of their number."""

    @abstractmethod
    def text(self, draws: int) -> str:
        """How the loss is factored, in words."""


def factor_of(risk: Risk, batch: Batch, outputs: Tensor) -> Factor:
    """The kind of a loss, from products with its second derivative on a few examples.

    Raises:
        DescriptionError: it is none of these kinds; says what to use instead.
    """
    if outputs[0].numel() <= FEW:
        return FewOutputs()
    if Elementwise.fits(risk, batch, outputs):
        return Elementwise()
    for axis in dict.fromkeys((outputs.ndim - 1, 1)):
        if Softmax.fits(risk, batch, outputs, axis):
            return Softmax(axis, outputs.shape[axis])
    refuse(
        f"{risk.where}: EKFAC needs a root of the loss's second derivative in the outputs, and knows it of losses with "
        f"at most {FEW} outputs per example, of losses that are sums over single outputs, and of softmax "
        f"cross-entropies (classes on the last axis of the outputs, or on the first); {name_of(risk.objective)} with "
        f"outputs {list(outputs.shape[1:])} is none of them; use curvature=GaussNewton()"
    )


@final
class FewOutputs(Factor):
    """The matrix of each example, written out."""

    exact = True

    def columns(self, risk: Risk, batch: Batch, outputs: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
        del draws, seed
        matrices = _matrices(risk, batch, outputs)  # [batch, c, c]
        values, vectors = torch.linalg.eigh((matrices + matrices.mT) / 2)
        level = 1e-6 * float(values.abs().max())
        if bool((values < -level).any()):
            example = batch.indices[int((values < -level).any(dim=1).nonzero()[0, 0])]
            _refuse_negative(risk, example)
        for place in range(values.shape[1] - 1, -1, -1):  # the largest first
            if not bool((values[:, place] > 0).any()) or float(values[:, place].max()) <= 1e-12 * float(values.max()):
                return
            column = values[:, place].clamp_min(0).sqrt().unsqueeze(1) * vectors[:, :, place]
            yield column.reshape(outputs.shape).to(_working(outputs))

    def text(self, draws: int) -> str:
        del draws
        return "the exact expectation over labels"


@final
class Elementwise(Factor):
    """A diagonal: each output has a second derivative of its own."""

    @staticmethod
    def fits(risk: Risk, batch: Batch, outputs: Tensor) -> bool:
        second = _Second(risk, batch, outputs)
        diagonal = second(torch.ones_like(second.at))
        signs = _signs(second.at.shape, 0).to(second.at)
        return _agrees(second(signs), diagonal * signs)

    def columns(self, risk: Risk, batch: Batch, outputs: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
        second = _Second(risk, batch, outputs)
        diagonal = second(torch.ones_like(second.at))
        if bool((diagonal < -1e-6 * diagonal.abs().max()).any()):
            place = int((diagonal.flatten(1) < -1e-6 * diagonal.abs().max()).any(dim=1).nonzero()[0, 0])
            _refuse_negative(risk, batch.indices[place])
        root = (diagonal.clamp_min(0) / draws).sqrt()
        for draw in range(draws):
            yield root * _drawn_signs(batch, outputs.shape[1:], seed + draw).to(root)

    def text(self, draws: int) -> str:
        return f"{draws} draw{'s' * (draws > 1)} of signs"


@final
class Softmax(Factor):
    """A softmax cross-entropy at each position, weighted; `axis` of the outputs holds the classes."""

    def __init__(self, axis: int, classes: int) -> None:
        self.axis, self.classes = axis, classes
        self._known: dict[tuple[int, ...], Tensor] = {}
        """The weights of batches seen before: the second pass finds those of the first."""
        self._room = KEPT

    @staticmethod
    def fits(risk: Risk, batch: Batch, outputs: Tensor, axis: int) -> bool:
        weights = Softmax(axis, outputs.shape[axis])._weights(risk, batch, outputs)
        if weights is None:
            return False
        second = _Second(risk, batch, outputs)
        p, v = second.at.softmax(axis), _signs(second.at.shape, 1).to(second.at)
        return _agrees(second(v), weights * (p * v - p * (p * v).sum(axis, keepdim=True)))

    def _weights(self, risk: Risk, batch: Batch, outputs: Tensor) -> Tensor | None:
        """w_t with an axis of size one for the classes, from a product at equal logits; None if it is no softmax.

        There `H v = w (v - mean v) / C` for every v, and nothing cancels.
        """
        known = self._known.get(tuple(batch.indices))
        if known is not None and known.shape == outputs.narrow(self.axis, 0, 1).shape:
            return known.to(outputs.device)
        second = _Second(risk, batch, torch.zeros_like(outputs))
        classes = self.classes
        v = (-1.0) ** torch.arange(classes, device=outputs.device, dtype=second.at.dtype)
        v = v - v.mean()
        shaped = v.reshape([-1 if axis == self.axis else 1 for axis in range(outputs.ndim)])
        product = second(shaped.expand_as(second.at)).movedim(self.axis, -1)
        along, size = (product @ v / (v @ v)).unsqueeze(-1), product.norm()
        if product.sub_(along * v).norm() > AGREEMENT * size:
            return None
        weights = (along * classes).movedim(-1, self.axis)
        if self._room >= weights.nbytes:
            self._known[tuple(batch.indices)] = weights.cpu()
            self._room -= weights.nbytes
        return weights

    def columns(self, risk: Risk, batch: Batch, outputs: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
        weights = self._weights(risk, batch, outputs)
        if weights is None:
            refuse(
                f"{risk.where}: the loss of examples {batch.indices[0]}.. is not the softmax cross-entropy of others"
            )
        if bool((weights < 0).any()):
            _refuse_negative(risk, batch.indices[int((weights < 0).flatten(1).any(dim=1).nonzero()[0, 0])])
        p = outputs.detach().to(_working(outputs)).softmax(self.axis)
        root, classes = weights.to(p).sqrt(), self.classes
        if classes <= FEW:
            for label in range(classes):
                chance = p.narrow(self.axis, label, 1)
                signs = _drawn_signs(batch, chance.shape[1:], seed + label).to(p)
                scale = root * chance.sqrt() * signs
                column = -scale * p
                column.narrow(self.axis, label, 1).add_(scale)
                yield column
            return
        p, scale = p.movedim(self.axis, -1), root.movedim(self.axis, -1) / draws**0.5
        cumulated = p.cumsum(-1)
        for draw in range(draws):
            chance = _drawn(batch, cumulated.shape[1:-1], seed + draw).to(p).unsqueeze(-1)
            labels = torch.searchsorted(cumulated, chance * cumulated[..., -1:]).clamp_max(classes - 1)
            yield (scale * p).scatter_add_(-1, labels, -scale).movedim(-1, self.axis)

    def text(self, draws: int) -> str:
        if self.classes <= FEW:
            return f"all {self.classes} labels of each position, with random signs"
        return f"{draws} label{'s' * (draws > 1)} drawn of {self.classes:,} at each position"


@final
class _Second:
    """Products with the losses' second derivative at some outputs, in double precision where the loss takes it."""

    def __init__(self, risk: Risk, batch: Batch, outputs: Tensor) -> None:
        wanted = torch.float64 if outputs[0].numel() <= FEW else _working(outputs)
        for dtype in dict.fromkeys((wanted, _working(outputs), outputs.dtype)):
            self.at = outputs.detach().to(dtype).requires_grad_()
            try:
                with torch.enable_grad():
                    (self._slope,) = torch.autograd.grad(
                        risk.reduce(self.at, batch).sum(), self.at, create_graph=True, materialize_grads=True
                    )
                return
            except RuntimeError as cause:
                if dtype == outputs.dtype:
                    refuse(f"{risk.where}: the loss has no second derivative in the outputs ({first_line(cause)})")

    def __call__(self, along: Tensor) -> Tensor:
        if not self._slope.requires_grad:  # a loss linear in the outputs
            return torch.zeros_like(along)
        with torch.enable_grad():  # of a number: given a cotangent, PyTorch imports its compiler
            paired = (self._slope * along).sum()
        (found,) = torch.autograd.grad(paired, self.at, retain_graph=True, materialize_grads=True)
        return found.detach()


def _matrices(risk: Risk, batch: Batch, outputs: Tensor) -> Tensor:
    """The losses' second derivatives `[batch, c, c]` at outputs of c numbers each, in double precision."""
    second = _Second(risk, batch, outputs)
    units = torch.eye(outputs[0].numel(), dtype=second.at.dtype, device=outputs.device)
    columns = [second(unit.reshape(outputs.shape[1:]).expand_as(second.at)).flatten(1) for unit in units]
    return torch.stack(columns, dim=2).double()


def _refuse_negative(risk: Risk, example: int) -> None:
    refuse(
        f"{risk.where}: the loss of example {example} has a negative second derivative in the outputs, and no root; "
        "EKFAC needs a loss that is convex in them: use curvature=Hessian()"
    )


def _working(outputs: Tensor) -> torch.dtype:
    return outputs.dtype if outputs.dtype == torch.float64 else torch.float32


def _agrees(found: Tensor, formula: Tensor) -> bool:
    return bool((found - formula).norm() <= AGREEMENT * found.norm())


def _signs(shape: torch.Size, seed: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5).double() * 2 - 1


def _drawn(batch: Batch, shape: torch.Size, seed: int) -> Tensor:
    """Numbers from 0 to 1, `[batch, *shape]`; an example's own depend on no other of its batch."""
    found = torch.empty(len(batch), *shape)
    for row, index in zip(found, batch.indices, strict=True):
        row.copy_(torch.rand(shape, generator=torch.Generator().manual_seed(1_000_003 * seed + index)))
    return found


def _drawn_signs(batch: Batch, shape: torch.Size, seed: int) -> Tensor:
    return (_drawn(batch, shape, seed) < 0.5).double() * 2 - 1
