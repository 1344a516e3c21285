"""Per-example gradients of a group of parameters, contracted with vectors: `g_i . v_k` without a list of all g_i.

A matrix group's gradient of example i is `sum_t d_t a_t'` over its positions t, with the layer's inputs a_t (n numbers)
and the gradients d_t in its outputs (m numbers). With K vectors there are two orders, by multiply-adds an example:

    the gradient first    T m n  to form it, m n K  for its product: one large product for all examples
    a side at a time      T m n K  for  V_k a_t,  T m K  for its products with d_t; nothing of m x n is formed

The second takes as many for one vector or one position, and is taken there while its intermediates are no larger. Of a
table of vectors only the lines that were looked up are touched: `sum_t d_t . V_k[line_t]`.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from stagetrace.taps.gradients import BYTES, Sums
from stagetrace.taps.groups import Group
from stagetrace.taps.layout import Piece

__all__ = ["GroupProducts", "GroupRows"]


Calls = list[tuple[Tensor, Tensor]]
"""What a layer was given, `[batch, positions, n]`, and the gradients in what it gave, call by call."""


@final
class GroupProducts:
    """The products of a group's per-example gradients with some vectors, batch after batch.

    Args:
        vectors: `[dim, k]` of all parameters, in single precision at least, contiguous: the group's part is read in
            place, and copied in another order only where a product wants that.
    """

    def __init__(self, group: Group, vectors: Tensor) -> None:
        self.group, self._vectors = group, vectors
        self._pieces = {piece.name: piece for piece in group.layout.pieces}
        self._column = group.layout.gather(vectors)[:, 0] if group.how == "module" else None
        self._turned: dict[str, Tensor] = {}

    def add(self, sums: Sums, gradients: dict[str, list[Tensor]], into: Tensor) -> None:
        """Add a batch's products to `into`, `[batch, k]`."""
        if self._column is not None:
            for part, matrices in sums.matrices(gradients):
                into[part].addmm_(matrices.squeeze(-1).to(into.dtype), self._column)
            return
        dense: dict[str, Calls] = {}
        last = sums.channels_last()
        for (use, rows), gave in zip(last or sums.read(), sums.outs(gradients), strict=True):
            outs = gave.to(into.dtype)
            if "bias" in use.keys and not use.looks_up:
                into.addmm_(outs.sum(dim=1), self._part(self._pieces[use.keys["bias"]]))
            if "weight" not in use.keys:
                continue
            if use.looks_up:
                self._look_up(self._pieces[use.keys["weight"]], rows, outs, into)
            else:
                dense.setdefault(use.keys["weight"], []).append((rows.to(into.dtype), outs))
        for name, calls in dense.items():
            if last:
                self._multiply_formed(self._pieces[name], calls, self._channels_last(name), into)
            else:
                self._multiply(self._pieces[name], calls, into)

    def _part(self, piece: Piece) -> Tensor:
        return self._vectors[piece.start : piece.start + piece.size]

    def _look_up(self, piece: Piece, lines: Tensor, outs: Tensor, into: Tensor) -> None:
        """`sum_t d_t . V_k[line_t]`: a sum of rows of the table's part `[lines x width, k]`, weighted by the d_t."""
        entries = _entries(lines, outs)
        into += F.embedding_bag(entries, self._part(piece), mode="sum", per_sample_weights=outs.flatten(1))

    def _multiply(self, piece: Piece, calls: Calls, into: Tensor) -> None:
        m, n, k = piece.rows, piece.columns, into.shape[1]
        positions = sum(rows.shape[1] for rows, _ in calls)
        if positions * k <= positions + k and positions * min(m, n) * k <= m * n:
            for rows, outs in calls:
                self._side_at_a_time(piece, rows, outs, into)
            return
        self._multiply_formed(piece, calls, self._part(piece), into)

    @staticmethod
    def _multiply_formed(piece: Piece, calls: Calls, vectors: Tensor, into: Tensor) -> None:
        for part in _parts(len(into), piece.size * into.element_size()):
            into[part].addmm_(_formed(piece, calls, part), vectors)

    def _channels_last(self, name: str) -> Tensor:
        """A convolution's vectors with the channels last; kept."""
        if name not in self._turned:
            piece, shape = self._pieces[name], self._weight_shape(name)
            each = self._part(piece).reshape(shape[0], shape[1], shape[2:].numel(), -1)
            self._turned[name] = each.transpose(1, 2).reshape(piece.size, -1)
        return self._turned[name]

    def _weight_shape(self, name: str) -> torch.Size:
        return next(use.module.get_parameter("weight").shape for use in self.group.uses if name in use.keys.values())

    def _side_at_a_time(self, piece: Piece, rows: Tensor, outs: Tensor, into: Tensor) -> None:
        """`sum_t d_t' V_k a_t` by the side first that leaves the fewest numbers."""
        m, n, k = piece.rows, piece.columns, into.shape[1]
        first, second, turned = (rows, outs, not piece.transposed) if m <= n else (outs, rows, piece.transposed)
        matrix = self._turn(piece) if turned else self._part(piece).reshape(first.shape[-1], -1)
        for part in _parts(len(into), first.shape[1] * min(m, n) * k * into.element_size()):
            halves = (first[part].flatten(0, 1) @ matrix).reshape(len(first[part]), -1, k)
            into[part] += (second[part].flatten(1).unsqueeze(1) @ halves).squeeze(1)

    def _turn(self, piece: Piece) -> Tensor:
        """The piece's vectors with its stored sides exchanged; kept."""
        if piece.name not in self._turned:
            stored = (piece.columns, piece.rows) if piece.transposed else (piece.rows, piece.columns)
            exchanged = self._part(piece).reshape(*stored, -1).transpose(0, 1)
            self._turned[piece.name] = exchanged.reshape(stored[1], -1)
        return self._turned[piece.name]


@final
class GroupRows:
    """The same with the unit vectors: a group's part of every example's whole gradient, in the parameters' order."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._pieces = {piece.name: piece for piece in group.layout.pieces}

    def add(self, sums: Sums, gradients: dict[str, list[Tensor]], into: Tensor) -> None:
        """Add the gradients to their places in `into`, `[batch, dim]`."""
        if self.group.how == "module":
            for part, matrices in sums.matrices(gradients):
                blocks = matrices.flatten(1).split([piece.size for piece in self.group.layout.pieces], dim=1)
                for piece, block in zip(self.group.layout.pieces, blocks, strict=True):
                    _own(piece, into)[part] += block
            return
        dense: dict[str, Calls] = {}
        for (use, rows), gave in zip(sums.read(), sums.outs(gradients), strict=True):
            outs = gave.to(into.dtype)
            if "bias" in use.keys and not use.looks_up:
                _own(self._pieces[use.keys["bias"]], into).add_(outs.sum(dim=1))
            if "weight" not in use.keys:
                continue
            if use.looks_up:
                _own(self._pieces[use.keys["weight"]], into).scatter_add_(1, _entries(rows, outs), outs.flatten(1))
            else:
                dense.setdefault(use.keys["weight"], []).append((rows.to(into.dtype), outs))
        for name, calls in dense.items():
            piece = self._pieces[name]
            for part in _parts(len(into), piece.size * into.element_size()):
                _own(piece, into)[part] += _formed(piece, calls, part)


def _own(piece: Piece, rows: Tensor) -> Tensor:
    return rows[:, piece.start : piece.start + piece.size]


def _entries(lines: Tensor, outs: Tensor) -> Tensor:
    """The places `[batch, positions x width]` in a table, row by row, of every number that was looked up."""
    width = outs.shape[-1]
    return (lines.unsqueeze(-1) * width + torch.arange(width, device=lines.device)).flatten(1)


def _formed(piece: Piece, calls: Calls, part: slice) -> Tensor:
    """`sum_t d_t a_t'` of some examples, `[examples, m n]` as the parameter lies in memory."""
    found: Tensor | None = None
    for rows, outs in calls:
        one, other = (rows[part], outs[part]) if piece.transposed else (outs[part], rows[part])
        found = one.mT @ other if found is None else found.baddbmm_(one.mT, other)
    assert found is not None
    return found.flatten(1)


def _parts(size: int, bytes_each: int) -> list[slice]:
    step = max(1, BYTES // max(1, bytes_each))
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]
