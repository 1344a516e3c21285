"""Sums over examples of what a block is made of: second moments of a layer's sides, and of gradients in their basis."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.ekfac.blocks import Block, Form
from stagetrace.parallel import world
from stagetrace.taps.gradients import BYTES, Sums
from stagetrace.taps.groups import Group

__all__ = ["LONGEST", "Bases", "Moments", "Room"]

LONGEST = 4096
"""The longest side that is given a basis: its decomposition takes a minute of one core."""


@final
@dataclass(frozen=True)
class Room:
    """Where sums are kept. total: the mean over all examples, from this process's sum."""

    dtype: torch.dtype
    device: torch.device
    total: Callable[[Tensor], Tensor]

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)


@final
class Bases:
    """The second moments of a layer's inputs and of its outputs' gradients, and their eigenvectors."""

    def __init__(self, group: Group, room: Room) -> None:
        m, n = group.layout.shape
        self._room, self._group = room, group
        self._left = room.zeros(m, m) if m <= LONGEST and not group.looks_up else None
        self._right = room.zeros(n, n) if 1 < n <= LONGEST else None
        self.left: Tensor | None = None
        self.right: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self._group.layout.shape

    def watch(self, sums: Sums) -> Callable[[dict[str, list[Tensor]]], None]:
        rows = sums.rows()
        if self._right is not None and not self._group.looks_up:
            for each in rows:
                self._right += _gram(each.flatten(0, 1).to(self._right.dtype))

        def add(gradients: dict[str, list[Tensor]]) -> None:
            for each, gave in zip(rows, sums.outs(gradients), strict=True):
                outs = gave.flatten(0, 1)
                if self._left is not None:
                    self._left += _gram(outs.to(self._left.dtype))
                if self._group.looks_up and self._right is not None:
                    # the side of the vectors: d_t of a lookup, and a_t weighted by |d_t| of a head with the same table
                    own = outs if not each.is_floating_point() else each.flatten(0, 1) * outs.norm(dim=1, keepdim=True)
                    self._right += _gram(own.to(self._right.dtype))

        return add

    def sum_up(self) -> None:
        """The means over all examples, from every process's sums."""
        self._left = None if self._left is None else self._room.total(self._left)
        self._right = None if self._right is None else self._room.total(self._right)

    def decompose(self) -> None:
        """The eigenvectors, in float64."""
        self.left = None if self._left is None else torch.linalg.eigh(self._left.double())[1]
        self.right = None if self._right is None else torch.linalg.eigh(self._right.double())[1]

    def take_over(self, rank: int) -> None:
        """The eigenvectors that the process of that rank found: where eigenvalues are equal they are open to choice."""
        sides = (self._left, self.left), (self._right, self.right)
        self.left, self.right = (None if of is None else _from_rank(rank, of, found) for of, found in sides)
        self._left = self._right = None


@final
class Moments:
    """The second moments of a group's gradients: of their entries in a basis, or of all pairs of them."""

    def __init__(self, group: Group, room: Room, bases: Bases | None, form: Form) -> None:
        m, n = group.layout.shape
        self._group, self._room = group, room
        self._form: Form = form
        self._left = None if bases is None or bases.left is None else bases.left.to(room.dtype)
        self._right = None if bases is None or bases.right is None else bases.right.to(room.dtype)
        self._bases = bases
        self._sum = room.zeros(m * n, m * n) if form == "exact" else room.zeros(m, n)

    def watch(self, sums: Sums) -> Callable[[dict[str, list[Tensor]]], None]:
        if self._bases is None:
            return lambda gradients: self._each(sums.matrices(gradients))
        rows = [
            each if self._right is None or not each.is_floating_point() else each.to(self._right.dtype) @ self._right
            for each in sums.rows()
        ]
        sides = [self._left if each.is_floating_point() else self._right for each in rows]
        return lambda gradients: self._turned(
            sums,
            rows,
            [
                each if side is None else each.to(side.dtype) @ side
                for each, side in zip(sums.outs(gradients), sides, strict=True)
            ],
        )

    def add(self, matrices: Tensor) -> None:
        """Gradients `[examples, m, n]`, in the basis where there is one."""
        if self._form == "exact":
            self._sum += _gram(matrices.flatten(1).to(self._sum.dtype))
        else:
            self._sum += matrices.to(self._sum.dtype).square().sum(dim=0)

    def block(self) -> Block:
        """The mean over all examples, decomposed where it is a whole block."""
        found, layout = self._room.total(self._sum), self._group.layout
        if self._form != "exact":
            bases = self._bases
            left, right = (None, None) if bases is None else (bases.left, bases.right)
            return Block(layout, self._form, found, left, right)
        values, vectors = torch.linalg.eigh(found.double())
        return Block(layout.as_column(), "exact", values.clamp_min(0).unsqueeze(1), vectors)

    def _each(self, parts: Iterator[tuple[slice, Tensor]]) -> None:
        for _, matrices in parts:
            self.add(matrices)

    def _turned(self, sums: Sums, rows: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        m, n = self._group.layout.shape
        if len(rows) == 1 and not rows[0].is_floating_point():
            self._looked_up(rows[0], outs[0])
            return
        if len(rows) == 1 and rows[0].shape[1] == 1:  # one position: no gradient need be formed
            self._sum += outs[0][:, 0].square().mT @ rows[0][:, 0].square()
            return
        step = max(1, BYTES // (4 * m * n))
        for first in range(0, sums.size, step):
            part = slice(first, first + step)
            self.add(sums.products([each[part] for each in rows], [each[part] for each in outs]))

    def _looked_up(self, lines: Tensor, outs: Tensor) -> None:
        """Of a table that is looked up once: only lines that occur, each example's gradients added up first."""
        m = self._group.layout.shape[0]
        keys = lines + m * torch.arange(len(lines), device=lines.device).unsqueeze(1)
        found, place = keys.reshape(-1).unique(return_inverse=True)
        summed = outs.new_zeros(len(found), outs.shape[-1]).index_add_(0, place, outs.flatten(0, 1))
        self._sum.index_add_(0, found % m, summed.square().to(self._sum.dtype))


def _from_rank(rank: int, matrix: Tensor, vectors: Tensor | None) -> Tensor:
    if world().size == 1 and vectors is not None:
        return vectors
    found = torch.empty_like(matrix, dtype=torch.float64) if vectors is None else vectors.contiguous()
    return world().from_rank(rank, found)


def _gram(rows: Tensor) -> Tensor:
    return rows.mT @ rows
