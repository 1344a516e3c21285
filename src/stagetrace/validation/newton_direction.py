"""The search direction of truncated Newton: conjugate gradients on `H p = -g`, also where H is indefinite."""

from dataclasses import dataclass
from math import inf
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.batched import run_batched
from stagetrace.solvers.conjugate_gradients import CGSettings, cg_recurrence
from stagetrace.solvers.iteration import silent
from stagetrace.solvers.vectors import dot, norm

FLAT = 1e-14
"""Curvature along a direction, over its squared length, that counts as rounding."""


@final
@dataclass(frozen=True)
class Direction:
    """A descent direction, the products it took, and what they showed of the Hessian.

    curvature: `step' H step`; below 0 the step follows negative curvature and descends by more than `g'step`.
    ritz: the smallest Ritz value; the true smallest eigenvalue is at most this.
    """

    step: Tensor
    curvature: float
    products: int
    ritz: float


def newton_direction(
    operator: LinearOperator,
    gradient: Tensor,
    rtol: float,
    most: int,
    longest: float,
    preconditioner: LinearOperator | None = None,
) -> Direction:
    """`p` with `|H p + g| <= rtol |g|`, or as far as conjugate gradients came in `most` products.

    preconditioner: a positive definite `M^-1` near the inverse of H; the Ritz value is then one of `M^-1 H`, which has
        the same sign.

    Where a search direction d has curvature `c = d'Hd <= 0`, the model has no minimum along it: the step is extended by
    `r'd / |c|` along d, as for a curvature of the other sign, limited to between a tenth of `longest` (near a saddle
    |r| is no measure of the distance) and `longest`. Both parts descend, since `g'p < 0` and `g'd = -r'd` (d is
    conjugate to all directions before it).

    Source: Steihaug (1983); Nocedal & Wright (2006), algorithm 7.1, with their step `p` continued along `d`.
    """
    settings = CGSettings(rtol, most, preconditioner=preconditioner, flat=FLAT)
    run = run_batched(
        operator, [cg_recurrence(torch.zeros_like(gradient), -gradient, norm(gradient), settings)], silent
    )
    (found,) = run.outcomes
    p, met = found.last, found.direction
    along = -dot(gradient, p)  # p'Hp = -g'p
    if met is None:
        return Direction(p, along, run.products, found.smallest_ritz)
    length = norm(met.vector)
    reach = met.decrease / abs(met.curvature) if met.curvature else inf  # r'd / |c|
    reach = max(longest / 10, min(longest, reach * length)) / length
    curvature = reach**2 * met.curvature + along
    return Direction(p + reach * met.vector, curvature, run.products, found.smallest_ritz)
