"""Many one-vector algorithms advanced together, with one batched product a step.

A Krylov method is written for one right-hand side, as in a textbook, as a Python generator: it yields the vector
it wants multiplied and is sent the product. `lockstep` runs one such process per column. In each step it
multiplies the vectors of all processes that still run as one matrix `[dim, k]`, so that several right-hand sides
cost one pass over the data and no line of code; a process that has returned drops out of the batch.

Example:
    >>> from types import SimpleNamespace
    >>> from stagetrace.curvature.operator import DiagonalOperator
    >>> from stagetrace.solvers.base import silent
    >>> def power(vector, times):
    ...     for _ in range(times):
    ...         vector = yield Ask(vector, 1.0)
    ...     return SimpleNamespace(vector=vector.tolist(), residual=0.0)
    >>> doubling = DiagonalOperator(torch.tensor([2.0, 2.0]))
    >>> run = lockstep(doubling, [power(torch.ones(2), 1), power(torch.ones(2), 3)], silent)
    >>> [outcome.vector for outcome in run.outcomes], run.products
    ([[2.0, 2.0], [8.0, 8.0]], 4)
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.base import Report
from stagetrace.solvers.numerics import require_finite


@final
@dataclass(frozen=True)
class Ask:
    """What a running process says: multiply `vector` `[dim]` please; my relative residual is about `residual`.

    `check` marks a product spent on measuring the answer, which is counted apart from those spent on finding it.
    """

    vector: Tensor
    residual: float
    check: bool = False


class Outcome(Protocol):
    """What a process returns: at least the relative residual that it ended with."""

    @property
    def residual(self) -> float: ...


T = TypeVar("T", bound=Outcome)
Process = Generator[Ask, Tensor, T]


@final
@dataclass(frozen=True)
class Finished(Generic[T]):
    """The outcomes in the order of the processes, and the operator-vector products they took together."""

    outcomes: tuple[T, ...]
    products: int
    checks: int


def lockstep(operator: LinearOperator, processes: "Sequence[Process[T]]", report: Report) -> Finished[T]:
    """Run every process to its end; `report(step, worst residual)` after each batched product.

    Raises:
        SolveError: a product is not finite.
    """
    outcomes: dict[int, T] = {}
    asks: dict[int, Ask] = {}
    products = checks = step = 0

    def advance(j: int, product: Tensor | None) -> None:
        asks.pop(j, None)
        try:
            asks[j] = next(processes[j]) if product is None else processes[j].send(product)
        except StopIteration as end:
            outcomes[j] = end.value

    for j in range(len(processes)):
        advance(j, None)
    while asks:
        step += 1
        live = sorted(asks)
        images = operator @ torch.stack([asks[j].vector for j in live], dim=1)
        require_finite(images, f"the product of {type(operator).__name__} with a vector, in step {step},")
        asked = sum(asks[j].check for j in live)
        products, checks = products + len(live) - asked, checks + asked
        for j, image in zip(live, images.unbind(1), strict=True):
            advance(j, image.contiguous())
        said = [ask.residual for ask in asks.values()] + [outcome.residual for outcome in outcomes.values()]
        report(step, max(said))
    return Finished(tuple(outcomes[j] for j in range(len(processes))), products, checks)
