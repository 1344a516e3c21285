"""One Lanczos run for one right-hand side and several dampings, as an iteration for `run_batched`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from stagetrace.curvature.shares import ALONE, Shares
from stagetrace.solvers.base import Status
from stagetrace.solvers.basis import Basis
from stagetrace.solvers.filters import Filter
from stagetrace.solvers.iteration import Iteration, Matvec
from stagetrace.solvers.numerics import relative
from stagetrace.solvers.recurrence import LanczosVectors, Recurrence
from stagetrace.solvers.shifted_qr import Column, ShiftedQR
from stagetrace.solvers.short_recurrence import VECTORS_PER_RUN, VECTORS_PER_SHIFT, ShortRecurrence
from stagetrace.solvers.vectors import norm

# The run aims a little below the tolerance, so that the measured residual, rounded otherwise, passes it too.
AIM = 0.9


class SolutionVectors(LanczosVectors, Protocol):
    """Vectors of a run that also form the solutions."""

    def update(self, j: int, q: Tensor, column: Column) -> None:
        """Shift `j` has taken its step along `q`, with this column of R."""
        ...

    def solution(self, j: int, system: ShiftedQR) -> Tensor:
        """The solution for shift `j`, `[dim]`."""
        ...


@final
@dataclass(frozen=True)
class Memory:
    """What fits into memory: the full basis or a few vectors, and how many columns at a time."""

    full_basis: bool
    group: int

    @staticmethod
    def plan(columns: Tensor, shifts: int, max_steps: int, memory: int, shares: Shares = ALONE) -> "Memory":
        """memory: bytes of this process. shares: of the basis it stores a piece of each vector."""
        vector = max(1, shares.most_held(columns.shape[0]) * columns.element_size())
        piece = max(1, shares.largest_piece(columns.shape[0]) * columns.element_size())
        fits = memory // (piece * min(max_steps, shares.dimension(columns.shape[0])) + 2 * vector)
        if fits:
            return Memory(True, fits)
        return Memory(False, max(1, memory // (vector * (VECTORS_PER_RUN + VECTORS_PER_SHIFT * shifts))))


@final
@dataclass(frozen=True)
class Answer:
    """The answer for one damping, whether the run was complete for it, and whether its system is singular."""

    value: Tensor
    estimate: float
    complete: bool
    singular: bool = False

    def status(self, residual: float, rtol: float) -> Status:
        if residual <= rtol:
            return Status.CONVERGED
        if self.singular:
            return Status.SINGULAR
        return Status.STAGNATED if self.complete else Status.MAX_STEPS

    def notes(self, residual: float, rtol: float) -> tuple[str, ...]:
        status = self.status(residual, rtol)
        if status is Status.SINGULAR:
            return ("the operator is singular and the right-hand side has a part outside its range: add damping",)
        if status is Status.STAGNATED:
            return (
                f"the recurrence reached {self.estimate:.1e} but the measured residual is {residual:.1e}, the rounding "
                f"floor of {self.value.dtype} for this system: raise the damping or rtol, or use float64",
            )
        return ()


@final
@dataclass(frozen=True)
class Krylov:
    """The outcome of a run: an answer for each damping, the Ritz values, and `|H b|`, known from the first product."""

    answers: tuple[Answer, ...]
    residual: float
    steps: int
    image: float = 0.0
    ritz: tuple[float, ...] = ()


@final
class _Damped:
    """The state of one damping: its QR, its residual estimate, and whether it is done."""

    def __init__(self, filter: Filter, length: float) -> None:
        self.system = ShiftedQR(filter.shift, length)
        self.residual, self.done, self.singular = 1.0, False, False

    def update_residual(self, alpha: float, beta: float, reference: float, aim: float) -> None:
        """Before the step: the residual of a complex shift's answer so far, which takes the new column of T."""
        if self.system.shift.imag and not self.done:
            self.residual = relative(self.system.tikhonov_residual(alpha, beta), reference)
            self.done = self.residual <= aim

    def step(self, alpha: float, beta: float, length: float, aim: float, level: float) -> Column | None:
        """Take the column of T in, unless done, or unless this last column would make the system singular."""
        if self.done:
            return None
        if beta == 0 and self.system.pivot(alpha) <= level:
            self.done = self.singular = True
            return None
        column = self.system.push(alpha, beta)
        if beta == 0:
            self.residual, self.done = 0.0, True
        elif not self.system.shift.imag:
            self.residual = self.system.shifted_residual / length
            self.done = self.residual <= aim
        return column


def run_lanczos(
    b: Tensor, filters: Sequence[Filter], memory: Memory, rtol: float, max_steps: int, shares: Shares = ALONE
) -> Iteration[Krylov]:
    """Run until every damping is done; one that is done is not updated further."""
    length, aim = norm(b), AIM * rtol
    if length == 0:
        return Krylov(tuple(Answer(torch.zeros_like(b), 0.0, True) for _ in filters), 0.0, 0)
    vectors = vectors_of(b, filters, memory, max_steps, shares)
    run = Recurrence(b, length, vectors)
    damped = [_Damped(filter, length) for filter in filters]
    image = steps = 0
    while steps < max_steps and not all(one.done for one in damped):
        q = run.q
        alpha, beta = run.advance((yield Matvec(q, max(one.residual for one in damped))))
        steps += 1
        if steps == 1:
            image = length * (alpha**2 + beta**2) ** 0.5
        for j, one in enumerate(damped):
            one.update_residual(alpha, beta, image, aim)
            column = one.step(alpha, beta, length, aim, run.level)
            if column:
                vectors.update(j, q, column)
    answers = tuple(
        Answer(vectors.solution(j, one.system), one.residual, one.done, one.singular) for j, one in enumerate(damped)
    )
    return Krylov(answers, max(one.residual for one in damped), steps, image, run.T.ritz())


def vectors_of(
    b: Tensor, filters: Sequence[Filter], memory: Memory, max_steps: int, shares: Shares = ALONE
) -> SolutionVectors:
    """What a run from `b` stores of its vectors: all, or a few where the basis does not fit."""
    if memory.full_basis:
        return Basis(b, min(max_steps, shares.dimension(b.numel())), shares)
    return ShortRecurrence(b, len(filters), complex_valued=any(filter.shift.imag for filter in filters))
