"""Many one-vector algorithms advanced together, with one batched product a step.

A Krylov method is written for one right-hand side, as in a textbook, as a Python generator: it yields the vector to
multiply and is sent the product. `run_batched` runs one such iteration per column. In each step it multiplies the
vectors of all iterations that still run as one matrix `[dim, k]`, so that several right-hand sides take one pass over
the data; an iteration that has returned drops out of the batch. An iteration may ask for a block of several vectors at
once, as the measurement of residuals does (`filters.py`).

Example:
    >>> from types import SimpleNamespace
    >>> from stagetrace.curvature.operator import DiagonalOperator
    >>> from stagetrace.solvers.iteration import silent
    >>> def power(vector, times):
    ...     for _ in range(times):
    ...         vector = yield Matvec(vector, 1.0)
    ...     return SimpleNamespace(vector=vector.tolist(), residual=0.0)
    >>> doubling = DiagonalOperator(torch.tensor([2.0, 2.0]))
    >>> run = run_batched(doubling, [power(torch.ones(2), 1), power(torch.ones(2), 3)], silent)
    >>> [outcome.vector for outcome in run.outcomes], run.products
    ([[2.0, 2.0], [8.0, 8.0]], 4)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, final

import torch
from torch import Tensor

from stagetrace.curvature.eigen import require_finite
from stagetrace.curvature.operator import LinearOperator
from stagetrace.solvers.iteration import Iteration, Matvec, Report, T
from stagetrace.solvers.vectors import in_pieces


@final
@dataclass(frozen=True)
class BatchedRun(Generic[T]):
    """The outcomes in the order of the iterations, and the operator-vector products they took together."""

    outcomes: tuple[T, ...]
    products: int
    checks: int


def run_batched(
    operator: LinearOperator, iterations: "Sequence[Iteration[T]]", report: Report, *, finite: bool = True
) -> BatchedRun[T]:
    """Run every iteration to its end; `report(step, worst residual)` after each batched product.

    finite: whether products must be finite.

    Raises:
        SolveError: a product is not, and must be.
    """
    with in_pieces(operator.shares):
        return _run_batched(operator, iterations, report, finite=finite)


def _run_batched(
    operator: LinearOperator, iterations: "Sequence[Iteration[T]]", report: Report, *, finite: bool
) -> BatchedRun[T]:
    outcomes: dict[int, T] = {}
    requests: dict[int, Matvec] = {}
    products = checks = step = 0

    def advance(j: int, product: Tensor | None) -> None:
        requests.pop(j, None)
        try:
            requests[j] = next(iterations[j]) if product is None else iterations[j].send(product)
        except StopIteration as end:
            outcomes[j] = end.value

    for j in range(len(iterations)):
        advance(j, None)
    while requests:
        step += 1
        live = sorted(requests)
        pending = [requests[j] for j in live]
        blocks = [each.vectors if each.vectors.ndim == 2 else each.vectors.unsqueeze(1) for each in pending]
        widths = [block.shape[1] for block in blocks]
        images = operator @ torch.cat(blocks, dim=1)
        if finite:
            require_finite(images, f"the product of {type(operator).__name__} with a vector, in step {step},")
        checked = sum(width for width, each in zip(widths, pending, strict=True) if each.check)
        products, checks = products + sum(widths) - checked, checks + checked
        for j, each, image in zip(live, pending, images.split(widths, dim=1), strict=True):
            advance(j, image.reshape(each.vectors.shape).contiguous())
        residuals = [each.residual for each in (*requests.values(), *outcomes.values())]
        report(step, max(residuals))
    return BatchedRun(tuple(outcomes[j] for j in range(len(iterations))), products, checks)
