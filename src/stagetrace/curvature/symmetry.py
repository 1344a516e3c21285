"""Second derivatives that are right are symmetric; an operation's derivative can be wrong and say nothing.

A fused operation can have a first derivative that is right and, silently, a second one that is not. Right ones satisfy
`u' H v = v' H u` for all u and v. It is looked at twice: for an example, before anything is spent, and for the first
two products with the whole curvature, which have been paid for anyway.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.shares import ALONE, Shares
from stagetrace.errors import DifferentiationError

__all__ = ["FirstProducts", "asymmetry", "asymmetry_beside", "drawn", "not_symmetric"]

ASYMMETRY = 0.02
"""How far `u' H v` and `v' H u` may be apart, over their size: above rounding in half precision, below what a wrong
derivative does."""

NOISE = 1000
"""Roundings, over the vectors' sizes, up to which `u' H v` may be noise; in half precision their root counts."""

PERIOD = 65_537
"""A prime, so that what repeats meets no layer's width."""

PARALLEL = 0.99
"""The cosine above which two vectors are one, for which any matrix looks symmetric."""


def asymmetry(product: Callable[[Tensor], Tensor], like: Tensor, rounding: float) -> tuple[float, float] | None:
    """`u' H v` and `v' H u` for two random vectors, if they are too far apart; None where the matrix looks symmetric.

    product: `[dim, 1] -> [dim, 1]`; like: of `[dim]`, in the dtype and on the device of the vectors.

    One vector and its product are there at a time: a vector can be as large as all else.
    """
    right, size_of_Hu = _across(product, like, 0, 1)
    left, size_of_Hv = _across(product, like, 1, 0)
    return _if_apart(left, right, max(size_of_Hu, size_of_Hv), rounding)


def asymmetry_beside(
    u: Tensor, Hu: Tensor, product: Callable[[Tensor], Tensor], rounding: float
) -> tuple[float, float] | None:
    """The same with one product, where that of a vector is at hand; u counts as if its entries were of size one."""
    scale = _size(u) / max(1, u.numel()) ** 0.5
    if not scale:
        return None
    v = drawn(u, 1)
    Hv = product(v.unsqueeze(1))[:, 0]
    return _if_apart(_dot(u, Hv) / scale, _dot(v, Hu) / scale, max(_size(Hu) / scale, _size(Hv)), rounding)


def _if_apart(left: float, right: float, size: float, rounding: float) -> tuple[float, float] | None:
    floor = rounding**0.5  # of a loss of about one: all there is where H is zero
    return (left, right) if abs(left - right) > ASYMMETRY * size + floor else None


def _across(product: Callable[[Tensor], Tensor], like: Tensor, seed: int, other: int) -> tuple[float, float]:
    """`w' H u`, and the size of `H u`, for the vectors of two seeds."""
    Hu = product(drawn(like, seed).unsqueeze(1))[:, 0]
    period = _period(like, other)
    return sum(_dot(period[: len(part)], part) for part in Hu.split(len(period))), _size(Hu)


def drawn(like: Tensor, seed: int) -> Tensor:
    """Standard normal numbers, which repeat: to draw millions of them takes longer than to multiply an example."""
    period = _period(like, seed)
    return period.repeat(-(-like.numel() // len(period)))[: like.numel()]


def _period(like: Tensor, seed: int) -> Tensor:
    return torch.randn(min(PERIOD, like.numel()), generator=torch.Generator().manual_seed(seed)).to(like)


def not_symmetric(where: str, matrix: str, of: str, left: float, right: float) -> DifferentiationError:
    """The error that says so."""
    return DifferentiationError(
        f"{where}: the {matrix} {of} is not symmetric (u'Hv = {left:.3g}, "
        f"v'Hu = {right:.3g}): the second derivative of an operation is wrong, as that of the fused "
        "weight norm is; write the operation out in plain PyTorch (torch.nn.utils.parametrizations.weight_norm for "
        "torch.nn.utils.weight_norm), or use curvature=Identity() for this stage"
    )


@final
class FirstProducts:
    """Compares the first two products of a curvature, of vectors that are not parallel.

    where, matrix: as messages name it. rounding: relative, of a product. shares: of the curvature.
    """

    def __init__(self, where: str, matrix: str, rounding: float, shares: Shares = ALONE) -> None:
        self._shares = shares
        self._where, self._matrix, self._rounding = where, matrix, rounding
        self._first: tuple[Tensor, Tensor] | None = None
        self._compared = False

    def see(self, vectors: Tensor, products: Tensor) -> None:
        """Take some vectors `[dim, k]` and their products in, until two of them have been compared.

        Raises:
            DifferentiationError: they are not symmetric.
        """
        for v, Hv in zip(vectors.unbind(1), products.unbind(1), strict=True):
            if self._compared:
                return
            if self._first is None:
                self._first = (v.clone(), Hv.clone()) if self._size(v) else None
            else:
                self._compare(*self._first, v, Hv)

    def _compare(self, u: Tensor, Hu: Tensor, v: Tensor, Hv: Tensor) -> None:
        size_u, size_v, size_Hu, size_Hv = map(self._size, (u, v, Hu, Hv))
        if abs(self._dot(u, v)) >= PARALLEL * size_u * size_v:
            return
        left, right = self._dot(u, Hv), self._dot(v, Hu)
        noise = min(NOISE * self._rounding, self._rounding**0.5) * (size_u * size_Hv + size_v * size_Hu)
        if abs(left - right) > (ASYMMETRY + self._rounding**0.5) * max(abs(left), abs(right)) + noise:
            raise not_symmetric(self._where, self._matrix, "of all its examples", left, right)
        self._first, self._compared = None, True

    def _dot(self, left: Tensor, right: Tensor) -> float:
        return self._of_all(_dot(left, right))

    def _size(self, vector: Tensor) -> float:
        here = _size(vector)
        return here if self._shares.entries is None else self._of_all(here**2) ** 0.5

    def _of_all(self, here: float) -> float:
        if self._shares.entries is None:
            return here
        return float(self._shares.summed(torch.tensor(here, dtype=torch.float64)))


def _size(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.promote_types(vector.dtype, torch.float32)))


def _dot(left: Tensor, right: Tensor) -> float:
    wide = torch.promote_types(left.dtype, torch.float32)
    return float(left.to(wide) @ right.to(wide))
