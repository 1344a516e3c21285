"""The recurrence of conjugate gradients, as an iteration for `run_batched`: the only one in the package.

With a preconditioner `M^-1` near `A^-1` it is, from `r = b - A x` and `z = M^-1 r`, `p = z`:

    a = r'z / p'Ap,    x += a p,    r -= a A p,    z = M^-1 r,    b = r'z / (r'z before),    p = z + b p

Where a direction p has no positive curvature, `p'Ap <= 0`, the quadratic model has no minimum along it: the outcome
holds that direction, so that a minimiser can go on along it (`validation/newton.py`).
"""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import Status
from stagetrace.solvers.iteration import Iteration, Matvec
from stagetrace.solvers.recurrence import Tridiagonal
from stagetrace.solvers.vectors import dot, norm, norm_of_sum

AIM = 0.5
"""Of the tolerance: what a recurrence that begins with a start aims at."""


@final
@dataclass(frozen=True)
class CGSettings:
    """When the iteration stops, and the system `A = H + damping I`.

    flat: curvature along a direction, over its squared length, that counts as zero.
    """

    rtol: float
    max_steps: int
    damping: float = 0.0
    preconditioner: LinearOperator | None = None
    flat: float = 0.0

    def precondition(self, residual: Tensor) -> Tensor:
        """`M^-1 r`."""
        return residual if self.preconditioner is None else self.preconditioner @ residual


@final
@dataclass(frozen=True)
class Direction:
    """A search direction p along which the curvature `p'Ap` is not positive; decrease: `r'M^-1 r`, which is `r'p`."""

    vector: Tensor
    curvature: float
    decrease: float


@final
@dataclass(frozen=True)
class CGResult:
    """Where the iteration ended.

    value: the iterate with the smallest residual; residual: relative to the right-hand side; last: the last iterate.
    direction: the one without positive curvature, where it met one.
    smallest_ritz: of `A`, or with a preconditioner of `M^-1 A`, whose sign is the same; infinite without a step.
    """

    value: Tensor
    residual: float
    steps: int
    status: Status
    last: Tensor
    notes: tuple[str, ...] = ()
    direction: Direction | None = None
    smallest_ritz: float = float("inf")


def conjugate_gradients(rhs: Tensor, settings: CGSettings, start: Tensor | None = None) -> Iteration[CGResult]:
    """Iterate, measure, and restart from the measured residual while that at least halves it.

    start: an answer to begin with, which is measured first, and is all if that is enough; zero by default.
    """
    zero = torch.zeros_like(rhs)
    size = norm(rhs)
    if size == 0:
        return CGResult(zero, 0.0, 0, Status.CONVERGED, zero)
    best, residual_vector = CGResult(zero, 1.0, 0, Status.MAX_STEPS, zero), rhs
    if start is not None:
        image = yield Matvec(start, 1.0, check=True)
        true = norm_of_sum((1.0, rhs), (-1.0, image), (-settings.damping, start)) / size
        if true <= settings.rtol:
            return CGResult(start, true, 0, Status.CONVERGED, start)
        if true < 1.0:  # else it is worse than nothing
            best, residual_vector = CGResult(start, true, 0, Status.MAX_STEPS, start), rhs - image
            residual_vector -= settings.damping * start
    # a start may lie just above the tolerance, where half of it is no fair demand: then the recurrence aims lower
    aimed = settings if start is None else replace(settings, rtol=AIM * settings.rtol)
    while True:
        found = yield from cg_recurrence(best.value, residual_vector, size, aimed, best.steps)
        image = yield Matvec(found.value, found.residual, check=True)
        true = norm_of_sum((1.0, rhs), (-1.0, image), (-settings.damping, found.value)) / size
        if true <= settings.rtol:
            return replace(found, residual=true, status=Status.CONVERGED, notes=())
        if found.status is not Status.CONVERGED or true > best.residual / 2:
            status = Status.STAGNATED if found.status is Status.CONVERGED else found.status
            kept, residual = (found.value, true) if true <= best.residual else (best.value, best.residual)
            return replace(found, value=kept, residual=residual, status=status)
        residual_vector = rhs - image - settings.damping * found.value
        best = replace(found, residual=true, status=Status.MAX_STEPS)


def cg_recurrence(
    start: Tensor, residual_vector: Tensor, size: float, settings: CGSettings, steps: int = 0
) -> Generator[Matvec, Tensor, CGResult]:
    """The recurrence from `start`; size: the norm that residuals are relative to; steps: those already made."""
    x, r = start, residual_vector
    z = settings.precondition(r)  # z = M^-1 r
    p, rz = z, dot(r, z)
    residual = _length(r, rz, settings) / size
    best, best_residual, status, notes = x, residual, Status.MAX_STEPS, ()
    direction, lengths, ratios = None, list[float](), list[float]()
    while steps < settings.max_steps:
        Ap = torch.add((yield Matvec(p, best_residual)), p, alpha=settings.damping)
        steps += 1
        curvature = dot(p, Ap)  # p'Ap
        if curvature <= 0 or (settings.flat and curvature <= settings.flat * dot(p, p)):
            direction = Direction(p, curvature, rz)
            status, notes = Status.INDEFINITE, (_remedy(curvature / dot(p, p), settings.damping),)
            break
        lengths.append(rz / curvature)  # a = r'z / p'Ap
        x, r = torch.add(x, p, alpha=lengths[-1]), torch.sub(r, Ap, alpha=lengths[-1])  # x += a p, r -= a A p
        z = settings.precondition(r)  # z = M^-1 r
        rz, previous = dot(r, z), rz
        ratios.append(rz / previous)  # b = r'z / (r'z before)
        residual = _length(r, rz, settings) / size
        if residual < best_residual:
            best, best_residual = x, residual
        if residual <= settings.rtol:
            status = Status.CONVERGED
            break
        # For a positive definite operator the residual rises at most by the root of the condition number.
        if residual * torch.finfo(r.dtype).eps > best_residual:
            status, notes = Status.SINGULAR, ("the right-hand side lies outside the operator's range: add damping",)
            break
        p = torch.add(z, p, alpha=ratios[-1])  # p = z + b p
    smallest = _smallest_ritz(lengths, ratios, direction)
    return CGResult(best, best_residual, steps, status, x, notes, direction, smallest)


def _length(r: Tensor, rz: float, settings: CGSettings) -> float:
    """`|r|`, which without a preconditioner is `sqrt(r'z)`."""
    return rz**0.5 if settings.preconditioner is None else norm(r)


def _smallest_ritz(lengths: list[float], ratios: list[float], met: Direction | None) -> float:
    """Conjugate gradients are Lanczos: their step lengths a and ratios b make its tridiagonal matrix,

    `T[j, j] = 1 / a[j] + b[j-1] / a[j-1]`, `T[j, j+1] = sqrt(b[j]) / a[j]`. (Golub & Van Loan 2013, section 11.3)
    """
    T = Tridiagonal()
    for j, (a, b) in enumerate(zip(lengths, ratios, strict=True)):
        T.extend(1 / a + (ratios[j - 1] / lengths[j - 1] if j else 0.0), b**0.5 / a)
    smallest = min(T.ritz(), default=float("inf"))
    return smallest if met is None else min(met.curvature / dot(met.vector, met.vector), smallest)


def _remedy(curvature: float, damping: float) -> str:
    # p'Ap / p'p is a Rayleigh quotient, so the smallest eigenvalue of H is at most this curvature less the damping.
    return (
        f"met curvature {curvature:.3g} along a search direction, so H has an eigenvalue of at most "
        f"{curvature - damping:.3g}: raise the damping above {damping - curvature:.3g}, use GaussNewton() "
        f"as the curvature, or solve the squared system with Normal(CG(), damping=...)"
    )
