"""Rows of the embedding's gradient, ragged: of each of an example's words as many numbers as there is room for.

An example of u words has a room of so many bytes. Each word takes two bytes for its number, four in a table of more
than 65,536 lines, and a byte for each direction that is kept of its row, at least four:

    words = min(u, room // (bytes of a number + 4)),    directions = room // words - bytes of a number

Of more words than there is room for those of the largest rows are kept. One scale is an example's, as in `codes.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.index.codes import Kind, encode
from stagetrace.index.store import Held

__all__ = ["FEWEST_DIRECTIONS", "Room", "packed", "row_of", "row_scores"]

FEWEST_DIRECTIONS = 4
"""Numbers that are kept of a word's row, at least."""

SHORT = 2**16
"""Lines of a table whose numbers are two bytes."""


@final
@dataclass(frozen=True)
class Room:
    """Bytes for an example's words; lines: of the table; directions: of a row, at most."""

    bytes: int
    lines: int
    directions: int

    @property
    def _of_number(self) -> int:
        return 2 if self.lines <= SHORT else 4

    @property
    def dtype(self) -> torch.dtype:
        """Of a word's number."""
        return torch.uint16 if self.lines <= SHORT else torch.int32

    @property
    def most(self) -> int:
        """Words that are kept of an example, at most."""
        return self.bytes // (self._of_number + min(FEWEST_DIRECTIONS, self.directions))

    def width(self, counts: Tensor) -> Tensor:
        """Directions of each word of an example that has so many words, whole numbers `[...]`.

        Example:
            >>> Room(490, lines=8000, directions=128).width(torch.tensor([1, 45, 81]))
            tensor([128,   8,   4])
        """
        return (self.bytes // counts.clamp_min(1) - self._of_number).clamp(0, self.directions)

    def taken(self, kind: Kind) -> int:
        """Bytes that an example's words take at most; as many as there is room for, if a number is a byte.

        Example:
            >>> Room(490, lines=8000, directions=128).taken("int8")
            490
        """
        counts = torch.arange(self.most + 1)
        return int((counts * (self._of_number + self.width(counts) * (1 if kind == "int8" else 4))).max())


def packed(rows: Sequence[tuple[Tensor, Tensor]], room: Room, kind: Kind) -> dict[str, Tensor]:
    """What is kept of examples, of which each has words `[u]` and rows in all directions `[u, d]`."""
    words, codes, scales = list[Tensor](), list[Tensor](), list[Tensor]()
    for own, values in rows:
        if len(own) > room.most:
            some = values.norm(dim=1).topk(room.most).indices.sort().values
            own, values = own[some], values[some]
        width = int(room.width(torch.tensor(len(own))))
        coded, scale = encode(values[:, :width].reshape(1, -1), kind) if len(own) else _nothing(kind)
        words.append(own.cpu())
        codes.append(coded[0])
        scales.append(scale)
    return {
        "words": torch.cat(words).to(room.dtype),
        "ends": torch.tensor([len(each) for each in words]).cumsum(0).int(),
        "row_codes": torch.cat(codes),
        "row_scales": torch.cat(scales),
    }


def _nothing(kind: Kind) -> tuple[Tensor, Tensor]:
    return torch.empty(1, 0, dtype=torch.int8 if kind == "int8" else torch.float32), torch.zeros(1)


def _places(held: Held, room: Room) -> tuple[Tensor, Tensor, Tensor]:
    """Of each kept word the example, its directions, and where its codes begin."""
    ends = held["ends"].long()
    counts = ends.diff(prepend=ends.new_zeros(1))
    owners = torch.arange(len(counts)).repeat_interleave(counts)
    widths = room.width(counts)[owners]
    return owners, widths, widths.cumsum(0) - widths


def row_of(held: Held, place: int, room: Room) -> tuple[Tensor, Tensor, Tensor]:
    """The words `[u]` of an example, the codes of their rows `[u, width]`, and their scale."""
    owners, widths, starts = _places(held, room)
    mine = (owners == place).nonzero()[:, 0]
    width = int(widths[mine[0]]) if len(mine) else 0
    codes = held["row_codes"][starts[mine].unsqueeze(1) + torch.arange(width)]
    return held["words"].long()[mine], codes, held["row_scales"][place]


def row_scores(held: Held, room: Room, queries: Tensor) -> Tensor:
    """The part of the scores `[b, k]` that comes from the words.

    queries: the adjoints' rows of the table in the directions, `[k, lines, d]`.
    """
    owners, widths, starts = _places(held, room)
    words, scales = held["words"].long(), held["row_scales"]
    found = torch.zeros(len(held["ends"]), len(queries))
    for width in widths.unique().tolist():
        same = (widths == width).nonzero()[:, 0]
        codes = held["row_codes"][starts[same].unsqueeze(1) + torch.arange(width)].float()
        for place, rows in enumerate(queries):
            products = (codes * rows[:, :width][words[same]]).sum(dim=1)
            found[:, place].index_add_(0, owners[same], products)
    return found.mul_(-scales.unsqueeze(1))
