"""Some of EK-FAC's coordinates of a gradient: entries of each group's matrix in the basis of its block.

A group's matrix M has the coordinates `U_left' M U_right`; those of the largest eigenvalues are kept. Of the bases only
the columns that these need are kept too, so that a coordinate costs little to compute.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.ekfac.blocks import Block

__all__ = ["Corner", "leading", "read_corners", "tensors_of"]


@final
@dataclass(frozen=True, eq=False)
class Corner:
    """Coordinates of a block: `(left' M right)[rows, columns]`, `[c]`; a side that is None stays in its axes.

    shape: of M, as the block has it.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    left: Tensor | None = None
    right: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, matrices: Tensor) -> Tensor:
        """`[b, c]` of matrices `[b, ...]`, of any shape with these entries."""
        matrices, rows = matrices.reshape(len(matrices), *self.shape), self.rows
        if self.left is not None:
            lines = self.left.mT.to(matrices) @ matrices
        else:
            lines, rows = matrices[:, rows], torch.arange(len(rows), device=rows.device)
        cells = lines if self.right is None else lines @ self.right.to(matrices)
        return cells[:, rows, self.columns]


def leading(blocks: Mapping[int, Block], count: int) -> dict[int, Corner]:
    """The `count` coordinates of the largest eigenvalues of all blocks together, those of each block by its number."""
    sizes = [block.values.numel() for block in blocks.values()]
    values = torch.cat([block.values.double().flatten() for block in blocks.values()])
    chosen = values.topk(min(count, len(values))).indices.sort().values.cpu()
    found, start = dict[int, Corner](), 0
    for (number, block), size in zip(blocks.items(), sizes, strict=True):
        own = chosen[(chosen >= start) & (chosen < start + size)] - start
        start += size
        if len(own):
            found[number] = _corner(block, own)
    return found


def _corner(block: Block, places: Tensor) -> Corner:
    m, n = block.values.shape
    rows, columns = places // n, places % n
    left, rows = _side(block.left, rows)
    right, columns = _side(block.right, columns)
    return Corner((m, n), rows, columns, left, right)


def _side(basis: Tensor | None, wanted: Tensor) -> tuple[Tensor | None, Tensor]:
    """The columns of a basis that are needed, and where each wanted one is among them."""
    if basis is None:
        return None, wanted
    some, places = wanted.unique(return_inverse=True)
    return basis[:, some].float(), places


def tensors_of(corners: Mapping[int, Corner]) -> Iterator[tuple[str, Tensor]]:
    """Corners as named tensors, for a file."""
    for number, corner in corners.items():
        yield f"{number}.shape", torch.tensor(corner.shape)
        yield f"{number}.rows", corner.rows
        yield f"{number}.columns", corner.columns
        for side, basis in (("left", corner.left), ("right", corner.right)):
            if basis is not None:
                yield f"{number}.{side}", basis


def read_corners(tensors: Mapping[str, Tensor], device: torch.device) -> dict[int, Corner]:
    """The corners that `tensors_of` made these of, in ascending order of their numbers."""
    numbers: Sequence[int] = sorted(int(name.split(".")[0]) for name in tensors if name.endswith(".shape"))

    def corner(number: int) -> Corner:
        m, n = tensors[f"{number}.shape"].tolist()
        left, right = (tensors.get(f"{number}.{side}") for side in ("left", "right"))
        sides = [None if basis is None else basis.to(device) for basis in (left, right)]
        return Corner((m, n), tensors[f"{number}.rows"], tensors[f"{number}.columns"], *sides)

    return {number: corner(number) for number in numbers}
