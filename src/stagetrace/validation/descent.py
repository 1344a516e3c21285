"""Where to go from a point: conjugate gradients on the Newton equations, safe where the curvature is not positive."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class Direction:
    """A direction of descent, how many products it took, and what it learned of the Hessian.

    curvature: `step' H step`; below 0 the step follows negative curvature, and descends by more than its slope says.
    ritz: the Krylov space's smallest eigenvalue estimate, which the true one does not exceed.
    """

    step: Tensor
    curvature: float
    products: int
    ritz: float


def newton_direction(
    product: Product,
    gradient: Tensor,
    rtol: float,
    most: int,
    longest: float,
    precondition: Product | None = None,
) -> Direction:
    """`p` with `|H p + g| <= rtol |g|`, or as far as conjugate gradients came.

    precondition: a positive definite `M^-1` near the inverse of H; the Ritz value is then one of `M^-1 H`, whose sign
    still is that of the curvature met.

    Where a search direction d has curvature `c = d'Hd <= 0`, the model has no minimum along it: the step goes on by
    `|r|^2 / |c|`, what a curvature of the other sign would give, but between a tenth of `longest` (next to a saddle |r|
    says nothing of the way out) and `longest`. Both parts descend, since `g'p < 0` and `g'd = -|r|^2` (d is conjugate
    to all that came before).

    Source: Steihaug (1983); Nocedal & Wright (2006), algorithm 7.1, with their step `p` continued along `d`.
    """
    improve = precondition or _as_it_is
    p, r = torch.zeros_like(gradient), -gradient
    d = improve(r)
    rr = float(r @ d)  # |r|^2, in the metric of M^-1
    enough, lengths, ratios = rtol * float(r.norm()), [], []
    for done in range(1, most + 1):
        Hd = product(d)
        curvature, dd = float(d @ Hd), float(d @ d)
        if curvature <= 1e-14 * dd:  # at rounding level it says nothing of a minimum either
            reach = rr / abs(curvature) if curvature else float("inf")
            reach = max(longest / 10, min(longest, reach * dd**0.5)) / dd**0.5
            ritz = min(curvature / dd, _smallest_ritz(lengths, ratios))
            return Direction(p + reach * d, reach**2 * curvature - float(gradient @ p), done, ritz)  # p'Hp = -g'p
        length = rr / curvature
        p, r = p + length * d, r - length * Hd
        z = improve(r)
        rr, before = float(r @ z), rr
        lengths.append(length)
        ratios.append(rr / before)
        if float(r.norm()) <= enough:
            break
        d = z + ratios[-1] * d
    return Direction(p, -float(gradient @ p), len(lengths), _smallest_ritz(lengths, ratios))


def _as_it_is(vector: Tensor) -> Tensor:
    return vector


def _smallest_ritz(lengths: list[float], ratios: list[float]) -> float:
    """Conjugate gradients are Lanczos: their step lengths a and ratios b make its tridiagonal matrix,

    `T[j, j] = 1 / a[j] + b[j-1] / a[j-1]`, `T[j, j+1] = sqrt(b[j]) / a[j]`. (Golub & Van Loan, section 11.3)
    """
    if not lengths:
        return float("inf")
    a, b = torch.tensor(lengths, dtype=torch.float64), torch.tensor(ratios, dtype=torch.float64)
    diagonal = 1 / a
    diagonal[1:] += b[:-1] / a[:-1]
    beside = b[:-1].sqrt() / a[:-1]
    return float(torch.linalg.eigvalsh(torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1))[0])


@final
@dataclass(frozen=True)
class Lowest:
    """The smallest Ritz pair of a Hessian: value, unit vector, and the largest Ritz value beside it."""

    value: float
    vector: Tensor
    largest: float
    products: int


def lowest_curvature(product: Product, like: Tensor, steps: int, seed: int = 0) -> Lowest:
    """A Lanczos run from a random vector, every vector orthogonalised against all before it."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(like.numel(), generator=generator, dtype=torch.float64).to(like)
    basis, images = [q / q.norm()], []
    for _ in range(min(steps, like.numel())):
        images.append(product(basis[-1]))
        rest = images[-1]
        for _ in range(2):
            for vector in basis:
                rest = rest - (vector @ rest) * vector
        if float(rest.norm()) <= 1e-10 * float(images[-1].norm()):
            break
        basis.append(rest / rest.norm())
    Q, HQ = torch.stack(basis[: len(images)], dim=1), torch.stack(images, dim=1)
    small = Q.mT @ HQ
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    return Lowest(float(values[0]), Q @ vectors[:, 0], float(values[-1]), len(images))
