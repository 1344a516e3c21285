"""One Lanczos run that applies `phi_t` of an operator to a vector, as an iteration for `run_batched`.

Like those of an inverse, its Krylov approximations leave a residual that is known without a product. With
`H Q = Q T + beta q e'` and `x = |b| Q phi_t(T) e1`,

    r = (b - H x) - |b| Q exp(-t T) e1 = -|b| beta [phi_t(T)]_m1 q,

which is how far x is from obeying `dx/ds = b - H x` at the time t. The entry only grows with t (the exponential of a
matrix with no negative entry off its diagonal has none at all), so that no earlier time has a larger residual, and

    |x - phi_t(H) b| <= phi_t(smallest eigenvalue of H) |r|.

Source: Botchev, Grimm & Hochbruck (2013), Residual, restarting and Richardson iteration for the matrix exponential.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from stagetrace.curvature.shares import Shares
from stagetrace.errors import SolveError
from stagetrace.solvers.base import Status
from stagetrace.solvers.basis import Basis
from stagetrace.solvers.flow import Flow
from stagetrace.solvers.iteration import Iteration, Matvec
from stagetrace.solvers.krylov import AIM
from stagetrace.solvers.recurrence import Recurrence, Tridiagonal
from stagetrace.solvers.vectors import norm, norm_of_sum

LARGEST_EXPONENT = 300.0
"""Of growth along negative curvature: exp of more is no number to go on with, and soon none that float64 holds."""


@final
@dataclass(frozen=True)
class Stopped:
    """What a run leaves: the answer, its residual as estimated and as measured, and the Ritz values."""

    value: Tensor
    estimate: float
    residual: float
    steps: int
    ritz: tuple[float, ...]

    def status(self, rtol: float) -> Status:
        if self.residual <= rtol:
            return Status.CONVERGED
        return Status.STAGNATED if self.estimate <= AIM * rtol else Status.MAX_STEPS


def run_stopped(
    b: Tensor, flow: Flow, rtol: float, max_steps: int, *, kept: Shares | None, growth: float = LARGEST_EXPONENT
) -> Iteration[Stopped]:
    """`phi_t(H) b` for `b` `[dim]`, until the residual passes `rtol`; the last product measures it.

    growth: the largest exponent `-t h` of growth along negative curvature that is taken.
    kept: among whom all basis vectors are remembered; None: a second run makes them once more for the sums.

    Raises:
        SolveError: negative curvature, along which the answer would grow by more than that.
    """
    length, steps, estimate = norm(b), 0, 1.0
    if length == 0:
        return Stopped(torch.zeros_like(b), 0.0, 0.0, 0, ())
    basis = None if kept is None else Basis(b, min(max_steps, b.numel()), kept)
    run = Recurrence(b, length, basis or _Sums(b))
    gains: list[np.ndarray] = []
    while steps < max_steps and estimate > AIM * rtol:
        run.advance((yield Matvec(run.q, estimate)))
        steps, gains = steps + 1, _gains(run.T, flow, growth)
        estimate = run.T.betas[-1] * abs(float(gains[0][-1]))
    coordinates = [(length * each).tolist() for each in gains]
    if basis is None:
        value, left = yield from _summed_again(b, length, coordinates, estimate)
    else:
        value, left = (basis.combine(each) for each in coordinates)
    image = yield Matvec(value, estimate, check=True)
    residual = norm_of_sum((1.0, b), (-1.0, image), (-1.0, left)) / length
    return Stopped(value, estimate, residual, steps, run.T.ritz())


def _gains(T: Tridiagonal, flow: Flow, growth: float) -> list[np.ndarray]:
    """`phi_t(T) e1` and `exp(-t T) e1`."""
    values, vectors = T.pairs()
    if -flow.time * values[0] > growth:
        raise SolveError(
            f"the curvature has an eigenvalue of {values[0]:.2e}, along which an effect would grow by "
            f"exp({-flow.time * values[0]:.0f}) in the time {flow.time:g}, which no training did, since the curvature "
            "changed on the way; take curvature=GaussNewton(), which has no negative eigenvalues"
        )
    return [(vectors * (vectors[0] * gain)).sum(axis=1) for gain in (flow(values), flow.left(values))]


@final
class _Sums:
    """Vectors of which nothing is remembered but sums, each with coordinates of its own."""

    def __init__(self, like: Tensor, coordinates: Sequence[Sequence[float]] = ()) -> None:
        self.sums = [torch.zeros_like(like) for _ in coordinates]
        self._coordinates, self._size = coordinates, 0

    @property
    def full(self) -> bool:
        """Never: without orthogonality a run may need more steps than there are dimensions."""
        return False

    def keep(self, q: Tensor) -> None:
        for total, coordinates in zip(self.sums, self._coordinates, strict=True):
            total.add_(q, alpha=coordinates[self._size])
        self._size += 1

    def orthogonalise(self, w: Tensor) -> Tensor:
        """The recurrence alone must do."""
        return w


def _summed_again(
    b: Tensor, length: float, coordinates: Sequence[Sequence[float]], estimate: float
) -> Generator[Matvec, Tensor, list[Tensor]]:
    """The sums of the basis vectors, each made anew: the last without a product."""
    sums = _Sums(b, coordinates)
    run = Recurrence(b, length, sums)
    for _ in range(len(coordinates[0]) - 1):
        run.advance((yield Matvec(run.q, estimate)))
    sums.keep(run.q)
    return sums.sums
