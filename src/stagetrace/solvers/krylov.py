"""One Lanczos run for one right-hand side and several dampings, as a process for `lockstep`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from stagetrace.solvers.base import Status
from stagetrace.solvers.basis import Basis
from stagetrace.solvers.filters import Filter
from stagetrace.solvers.lockstep import Ask, Process
from stagetrace.solvers.numerics import relative
from stagetrace.solvers.recurrence import Recurrence, Vectors
from stagetrace.solvers.shifted_qr import Column, ShiftedQR
from stagetrace.solvers.short_recurrence import VECTORS_PER_RUN, VECTORS_PER_SHIFT, Directions
from stagetrace.solvers.vectors import norm

# The run aims a little below the tolerance, so that the measured residual, rounded otherwise, passes it too.
AIM = 0.9


class AnsweringVectors(Vectors, Protocol):
    """Vectors of a run from which the answers can be had."""

    def follow(self, j: int, q: Tensor, column: Column) -> None:
        """Shift `j` has taken its step along `q`, with this column of R."""
        ...

    def answer(self, j: int, system: ShiftedQR) -> Tensor:
        """The answer for shift `j`, `[dim]`."""
        ...


@final
@dataclass(frozen=True)
class Memory:
    """What the memory allows: a kept basis or not, and how many columns at a time."""

    kept: bool
    group: int

    @staticmethod
    def plan(columns: Tensor, shifts: int, max_steps: int, memory: int) -> "Memory":
        vector = max(1, columns.shape[0] * columns.element_size())
        fits = memory // (vector * (min(max_steps, columns.shape[0]) + 2))
        if fits:
            return Memory(True, fits)
        return Memory(False, max(1, memory // (vector * (VECTORS_PER_RUN + VECTORS_PER_SHIFT * shifts))))


@final
@dataclass(frozen=True)
class Answer:
    """The answer for one damping, and how the run judged it: nothing more to gain, or a singular system."""

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
    """What a run leaves: an answer for each damping, the Ritz values, and `|H b|`, known from the first product."""

    answers: tuple[Answer, ...]
    residual: float
    steps: int
    image: float = 0.0
    ritz: tuple[float, ...] = ()


@final
class _Damped:
    """One damping's share of the run: its QR, its residual estimate, and whether it is done."""

    def __init__(self, filter: Filter, length: float) -> None:
        self.system = ShiftedQR(filter.shift, length)
        self.residual, self.done, self.singular = 1.0, False, False

    def judge(self, alpha: float, beta: float, reference: float, aim: float) -> None:
        """Before the step: the residual of a complex shift's answer so far, which takes the new column of T."""
        if self.system.shift.imag and not self.done:
            self.residual = relative(self.system.look_ahead(alpha, beta), reference)
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
            self.residual = self.system.size_of_residual / length
            self.done = self.residual <= aim
        return column


def run_lanczos(b: Tensor, filters: Sequence[Filter], memory: Memory, rtol: float, max_steps: int) -> Process[Krylov]:
    """Run until every damping is done; a damping that is done takes no further part."""
    length, aim = norm(b), AIM * rtol
    if length == 0:
        return Krylov(tuple(Answer(torch.zeros_like(b), 0.0, True) for _ in filters), 0.0, 0)
    vectors = vectors_of(b, filters, memory, max_steps)
    run = Recurrence(b, length, vectors)
    damped = [_Damped(filter, length) for filter in filters]
    image = steps = 0
    while steps < max_steps and not all(one.done for one in damped):
        q = run.q
        alpha, beta = run.advance((yield Ask(q, max(one.residual for one in damped))))
        steps += 1
        if steps == 1:
            image = length * (alpha**2 + beta**2) ** 0.5
        for j, one in enumerate(damped):
            one.judge(alpha, beta, image, aim)
            column = one.step(alpha, beta, length, aim, run.level)
            if column:
                vectors.follow(j, q, column)
    answers = tuple(
        Answer(vectors.answer(j, one.system), one.residual, one.done, one.singular) for j, one in enumerate(damped)
    )
    return Krylov(answers, max(one.residual for one in damped), steps, image, run.T.ritz())


def vectors_of(b: Tensor, filters: Sequence[Filter], memory: Memory, max_steps: int) -> AnsweringVectors:
    """What a run from `b` remembers of its vectors: all, or as little as the memory asks for."""
    if memory.kept:
        return Basis(b, min(max_steps, b.numel()))
    return Directions(b, len(filters), complex_valued=any(filter.shift.imag for filter in filters))
