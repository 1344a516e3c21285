"""Where to go from a point: conjugate gradients on the Newton equations, safe where the curvature is not positive."""

from dataclasses import dataclass
from math import inf
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import silent
from stagetrace.solvers.batched import run_batched
from stagetrace.solvers.conjugate_gradients import CGSettings, cg_recurrence
from stagetrace.solvers.vectors import dot, norm

FLAT = 1e-14
"""Curvature along a direction, over its squared length, that is rounding and says nothing of a minimum."""


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
    operator: LinearOperator,
    gradient: Tensor,
    rtol: float,
    most: int,
    longest: float,
    preconditioner: LinearOperator | None = None,
) -> Direction:
    """`p` with `|H p + g| <= rtol |g|`, or as far as conjugate gradients came in `most` products.

    preconditioner: a positive definite `M^-1` near the inverse of H; the Ritz value is then one of `M^-1 H`, whose sign
    still is that of the curvature met.

    Where a search direction d has curvature `c = d'Hd <= 0`, the model has no minimum along it: the step goes on by
    `r'd / |c|`, what a curvature of the other sign would give, but between a tenth of `longest` (next to a saddle |r|
    says nothing of the way out) and `longest`. Both parts descend, since `g'p < 0` and `g'd = -r'd` (d is conjugate
    to all that came before).

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
    reach = met.decrease / abs(met.curvature) if met.curvature else inf
    reach = max(longest / 10, min(longest, reach * length)) / length
    curvature = reach**2 * met.curvature + along
    return Direction(p + reach * met.vector, curvature, run.products, found.smallest_ritz)
