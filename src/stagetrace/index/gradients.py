"""The gradients of a stage's examples, some at a time and multiplied by matrices group by group: never `[n, P]`."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, final

import torch
from torch import Tensor

from stagetrace.curvature.ekfac.fit import fitting
from stagetrace.errors import DifferentiationError
from stagetrace.index.table import table_of, words_of
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import trained_gradient
from stagetrace.stages.risk import Risk, check_finite
from stagetrace.taps.find import Tapped, tap
from stagetrace.taps.gradients import wide
from stagetrace.taps.layout import Layout
from stagetrace.taps.rest import Rest

__all__ = ["Columns", "ExampleGradients", "Piece"]

GRAPH_BYTES = 2**29
"""Memory for the graph of a batch, which decides how many examples are differentiated at once."""


@final
class Piece(NamedTuple):
    """The gradients of some examples of a batch in a group of parameters.

    number: of the group. part: which examples. rows: their gradients `[examples, size]`. words: of each example of the
    batch, as `words_of` gives them, where the group is the table that was asked for.
    """

    number: int
    part: slice
    rows: Tensor
    words: list[Tensor]


@final
class Columns:
    """Vectors `[P, k]` as each group of parameters has them: what gradients are multiplied by."""

    def __init__(self, vectors: Tensor, layouts: Sequence[Layout] | None) -> None:
        self.count = vectors.shape[1]
        self.parts = (
            [vectors] if layouts is None else [each.gather(vectors).reshape(each.size, self.count) for each in layouts]
        )


@final
class ExampleGradients:
    """A stage's per-example gradients: by taps behind its layers, which were compared with autograd on a few examples;
    one by one where a model cannot be tapped.

    Raises:
        DataError: an example cannot be evaluated.
    """

    def __init__(self, risk: Risk) -> None:
        self.risk = risk
        self._tapped: Tapped | None
        try:
            with torch.no_grad():
                self._tapped = tap(risk)
        except DifferentiationError:  # a model that is differentiated as a whole only, as under checkpointing
            self._tapped = None
        self.batch_size = 1 if self._tapped is None else fitting(self._tapped, GRAPH_BYTES)
        self.dtype = wide(torch.empty(0, dtype=risk.trained.dtype)).dtype
        if self._tapped is not None:
            self._rest = Rest(risk, [name for group in self._tapped.rest for name in group.names])

    def columns(self, vectors: Tensor) -> Columns:
        """Vectors `[P, k]`, ready for `products`."""
        return Columns(vectors.to(self.risk.trained.device, self.dtype), self._layouts)

    def products(self, indices: Sequence[int], columns: Columns) -> Iterator[tuple[Sequence[int], Tensor, Tensor]]:
        """Some examples at a time: which, their losses `[b]`, and their gradients times the columns `[b, k]`.

        Raises:
            DataError: a loss or a gradient is not finite; the example is named.
        """
        for batch in self.risk.read(self.risk.examples.batch_indices(indices, size=self.batch_size)):
            found = torch.zeros(len(batch), columns.count, dtype=self.dtype, device=self.risk.trained.device)
            with torch.no_grad():
                losses, pieces = self._pieces(batch)
                for piece in pieces:
                    found[piece.part] += piece.rows @ columns.parts[piece.number]
            check_finite(losses, batch.indices, self.risk.where)
            check_finite(found.sum(dim=1), batch.indices, self.risk.where, "the gradient")
            yield batch.indices, losses, found

    @torch.no_grad()
    def pieces(self, indices: Sequence[int], table: int) -> Iterator[tuple[Sequence[int], Iterator[Piece]]]:
        """Some examples at a time: which, and their gradients group by group, with words at the table of this number.

        Raises:
            DataError: a loss or a gradient is not finite; the example is named.
        """
        for batch in self.risk.read(self.risk.examples.batch_indices(indices, size=self.batch_size)):
            losses, pieces = self._pieces(batch, table)
            check_finite(losses, batch.indices, self.risk.where)
            yield batch.indices, self._finite(batch, pieces)

    @torch.no_grad()
    def _finite(self, batch: Batch, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            check_finite(piece.rows.sum(dim=1), batch.indices[piece.part], self.risk.where, "the gradient")
            yield piece

    def vectors(self, indices: Sequence[int]) -> Tensor:
        """The gradients themselves, `[P, len(indices)]`; only of as many as memory holds.

        Raises:
            DataError: a loss or a gradient is not finite; the example is named.
        """
        found = torch.empty(self.risk.trained.size, len(indices), dtype=self.dtype, device=self.risk.trained.device)
        done = 0
        for batch in self.risk.read(self.risk.examples.batch_indices(indices, size=self.batch_size)):
            with torch.no_grad():
                losses, pieces = self._pieces(batch)
                for number, part, rows, _ in pieces:
                    first = done + (part.start or 0)
                    self._write(number, rows, found[:, first : first + len(rows)])
            check_finite(losses, batch.indices, self.risk.where)
            check_finite(found[:, done : done + len(batch)].sum(dim=0), batch.indices, self.risk.where, "the gradient")
            done += len(batch)
        return found

    @cached_property
    def table(self) -> int | None:
        """The number of the group that is the table of words; None where there is none."""
        return None if self._tapped is None else table_of(self._tapped)

    @property
    def layouts(self) -> list[Layout]:
        """Of each group of parameters; of a model without taps all are one column."""
        return self._layouts or [Layout.stacked(self.risk.trained, self.risk.trained.names)]

    @property
    def _layouts(self) -> list[Layout] | None:
        tapped = self._tapped
        return None if tapped is None else [group.layout for group in (*tapped.tapped, *tapped.rest)]

    def _write(self, number: int, rows: Tensor, into: Tensor) -> None:
        layouts = self._layouts
        if layouts is None:
            into.copy_(rows.mT)
            return
        m, n = layouts[number].shape
        layouts[number].scatter(rows.reshape(len(rows), m, n).permute(1, 2, 0), into)

    def _pieces(self, batch: Batch, table: int | None = None) -> tuple[Tensor, Iterator[Piece]]:
        """The losses, and the gradients piece by piece, with words at the table of this number."""
        tapped = self._tapped
        if tapped is None:
            loss, gradient = trained_gradient(self.risk, batch)
            return loss.unsqueeze(0), iter([Piece(0, slice(0, 1), gradient.to(self.dtype).unsqueeze(0), [])])
        record = tapped.taps.record(batch)
        losses, slopes = self._slopes(record.outputs, batch)
        gradients = record.gradients(slopes)

        def pieces() -> Iterator[Piece]:
            for number, sums in enumerate(tapped.sums(record)):
                words = words_of(sums, gradients) if number == table else []
                for part, matrices in sums.matrices(gradients):
                    yield Piece(number, part, matrices.reshape(len(matrices), -1), words)
            if tapped.rest:
                yield from self._pieces_of_rest(tapped, batch, slopes)

        return losses, pieces()

    def _pieces_of_rest(self, tapped: Tapped, batch: Batch, slopes: Tensor) -> Iterator[Piece]:
        first, sizes = 0, [group.layout.size for group in tapped.rest]
        for found in self._rest.gradients(batch, slopes.unsqueeze(0)):
            part = slice(first, first + found.shape[1])
            for number, own in enumerate(found[0].split(sizes, dim=1)):
                yield Piece(len(tapped.tapped) + number, part, own, [])
            first = part.stop

    def _slopes(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each example's loss, and its derivative in that example's outputs `[batch, ...]`."""
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            losses = self.risk.reduce(leaf, batch)
            if not losses.requires_grad:
                return losses.detach(), torch.zeros_like(leaf)
            (slopes,) = torch.autograd.grad(losses.sum(), leaf, materialize_grads=True)
        return losses.detach(), slopes
