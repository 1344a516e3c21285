"""Many one-vector algorithms advanced together, with one batched product a step.

A Krylov method is written for one right-hand side, as in a textbook, as a Python generator: it yields the vector
it wants multiplied and is sent the product. `lockstep` runs one such process per column. In each step it
multiplies the vectors of all processes that still run as one matrix `[dim, k]`, so that several right-hand sides
cost one pass over the data and no line of code; a process that has returned drops out of the batch. A process may
ask for a block of several vectors at once, as the measurement of residuals does (`filters.py`).

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, final

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.numerics import require_finite
from stagetrace.solvers.process import Ask as Ask
from stagetrace.solvers.process import Process as Process
from stagetrace.solvers.process import Report, T


@final
@dataclass(frozen=True)
class Finished(Generic[T]):
    """The outcomes in the order of the processes, and the operator-vector products they took together."""

    outcomes: tuple[T, ...]
    products: int
    checks: int


def lockstep(
    operator: LinearOperator, processes: "Sequence[Process[T]]", report: Report, *, finite: bool = True
) -> Finished[T]:
    """Run every process to its end; `report(step, worst residual)` after each batched product.

    finite: whether products must be finite.

    Raises:
        SolveError: a product is not, and must be.
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
        asked = [asks[j] for j in live]
        blocks = [ask.vectors if ask.vectors.ndim == 2 else ask.vectors.unsqueeze(1) for ask in asked]
        widths = [block.shape[1] for block in blocks]
        images = operator @ torch.cat(blocks, dim=1)
        if finite:
            require_finite(images, f"the product of {type(operator).__name__} with a vector, in step {step},")
        checked = sum(width for width, ask in zip(widths, asked, strict=True) if ask.check)
        products, checks = products + sum(widths) - checked, checks + checked
        for j, ask, image in zip(live, asked, images.split(widths, dim=1), strict=True):
            advance(j, image.reshape(ask.vectors.shape).contiguous())
        said = [ask.residual for ask in asks.values()] + [outcome.residual for outcome in outcomes.values()]
        report(step, max(said))
    return Finished(tuple(outcomes[j] for j in range(len(processes))), products, checks)
