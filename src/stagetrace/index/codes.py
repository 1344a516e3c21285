"""What is kept of an example: its gradient's coordinates in the basis, in one byte each, and one scale.

    coordinates c = V' g,    scale = max |c| / 127,    code = round(c / scale),    score of adjoint x: -scale code . V'x

The scale is float32: the norms of a fitted model's gradients span more powers of ten than half precision has.
"""

from typing import Literal, final

import torch
from torch import Tensor

from stagetrace.errors import refuse

__all__ = ["Kind", "Products", "bytes_each", "encode", "near"]

Kind = Literal["int8", "float32"]
"""How a coordinate is kept."""

ROWS = 256
"""Codes that are made float32 at once: they stay in a processor's cache."""


ROUNDING = 1e-3
"""Over an example's norm: how far coordinates may be from those that are kept, beside what the codes round."""


def encode(coordinates: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Codes `[b, r]` and scales `[b]` of coordinates `[b, r]`, on the CPU.

    Example:
        >>> codes, scales = encode(torch.tensor([[2.54, -1.27, 0.0]]), "int8")
        >>> codes.tolist(), round(scales.item(), 4)
        ([[127, -64, 0]], 0.02)
    """
    coordinates = coordinates.cpu()
    if kind == "float32":
        return coordinates.float(), torch.ones(len(coordinates))
    if kind != "int8":
        refuse(f"codes must be 'int8' or 'float32', got {kind!r}")
    scales = (coordinates.abs().amax(dim=1) / 127).float()
    turned = coordinates / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    return turned.round().clamp(-127, 127).to(torch.int8), scales


def bytes_each(numbers: int, kind: Kind) -> int:
    """Bytes that an example takes."""
    return 4 + numbers * (1 if kind == "int8" else 4)


def near(codes: Tensor, scale: Tensor, fresh: Tensor) -> bool:
    """Whether codes `[r]` and their scale are of the coordinates `[r]`."""
    kept = codes.float() * scale
    rounded = 0.5 * float(scale) if codes.dtype == torch.int8 else 0.0
    return bool(((kept - fresh).abs() <= rounded + ROUNDING * float(fresh.norm())).all())


@final
class Products:
    """Approximate scores of queries from codes, block by block.

    queries: the adjoints in the basis, `V'x [r, k]`.
    """

    def __init__(self, queries: Tensor) -> None:
        self._queries = queries.float().cpu().contiguous()
        self._room = torch.empty(ROWS, len(queries))

    def scores(self, codes: Tensor, scales: Tensor) -> Tensor:
        """`[b, k]`; positive = harmful; unit: query loss. They choose candidates and are never shown."""
        found = torch.empty(len(codes), self._queries.shape[1])
        for start in range(0, len(codes), ROWS):
            some = codes[start : start + ROWS]
            block = self._room[: len(some)].copy_(some)
            torch.matmul(block, self._queries, out=found[start : start + len(some)])
        return found.mul_(-scales.unsqueeze(1))
