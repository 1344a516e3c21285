"""A solve in which tangent maps will be traced: what tracing takes, seen on a few examples.

A curvature is traced once as many products were made as tracing costs (`curvature/plan.py`). A rehearsal over some
examples is traced later, or never, so its seconds are those of retained graphs. Tracing is measured by itself, on two
numbers of examples: seconds and bytes are a part that is the same for each chunk and one for each example.
"""

from dataclasses import replace

import torch

from stagetrace.curvature.auto import HessianWithFallback
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.operator import LinearOperator, SumOperator
from stagetrace.preflight.live_tensors import LiveTensors
from stagetrace.preflight.meter import Seconds, resident_bytes
from stagetrace.preflight.solve_estimate import SolveEstimate

__all__ = ["with_tracing"]

FEW, MORE = 2, 6
"""Examples that are traced."""


def with_tracing(
    found: SolveEstimate, part: LinearOperator, whole: LinearOperator, number: int, chunk: int
) -> SolveEstimate:
    """The rehearsal, with the seconds and the peak of tracing where the run will trace.

    part: what was multiplied by in the rehearsal; whole: the same over all examples. number: of the run's products with
    it. chunk: examples in a chunk.
    """
    mean, small = _mean(whole), _mean(part)
    if mean is None or small is None or mean.plan.traced_from is None or number < mean.plan.traced_from:
        return found
    if small.plan.way == "linearised":  # it was traced, too, and all of it has been measured
        return found
    vector = torch.randn(mean.size, 1).to(mean.device, mean.dtype)
    set_up, products, bytes_at, kept_at = list[Seconds](), list[Seconds](), list[int](), list[int]()
    if mean.traced_over(FEW).plan.way != "linearised":  # imports the tracer; where it fails the run keeps its graphs
        return found
    for examples in (FEW, MORE):
        started = Seconds.now()
        operator = mean.traced_over(examples)
        set_up.append(Seconds.now() - started)
        operator.apply(vector)
        started = Seconds.now()
        operator.apply(vector)
        products.append(Seconds.now() - started)
        operator.release()
        with LiveTensors() as seen:
            operator.apply(vector)
        bytes_at.append(seen.peak)
        kept_at.append(seen.now)
    chunks = -(-found.of // chunk)
    each = (set_up[1] - set_up[0]) * (1 / (MORE - FEW))
    tracing = each * found.of + (set_up[0] - each * FEW) * chunks
    return replace(
        found,
        over=_seconds(found, number, mean, products) + tracing,
        peak=max(found.peak, resident_bytes() + _bytes(found.of, chunk, bytes_at, kept_at)),
    )


def _seconds(found: SolveEstimate, number: int, mean: MeanCurvature, products: list[Seconds]) -> Seconds:
    """Of all products: those before tracing as they were, and those after it by their ratio to a retained graph's."""
    retained = MeanCurvature(mean.risk, mean.indices[:MORE], replace(mean.plan, traced_from=None))
    vector = torch.randn(mean.size, 1).to(mean.device, mean.dtype)
    retained.apply(vector)
    started = Seconds.now()
    retained.apply(vector)
    ratio = min(1.0, products[1].cpu / max(1e-9, (Seconds.now() - started).cpu))
    later = (number - (mean.plan.traced_from or 0)) / max(1, found.products)
    return found.over * (1 - later * (1 - ratio))


def _bytes(of: int, chunk: int, bytes_at: list[int], kept_at: list[int]) -> int:
    """What all chunks keep, and what tracing the last one takes on its way."""
    kept = max(0, kept_at[1] - kept_at[0]) // (MORE - FEW)
    passing = max(0, bytes_at[1] - bytes_at[0]) // (MORE - FEW) - kept
    return kept * of + max(0, passing) * min(chunk, of) + bytes_at[0]


def _mean(operator: LinearOperator) -> MeanCurvature | None:
    """The mean over examples that an operator has in it."""
    if isinstance(operator, HessianWithFallback):
        operator = operator.hessian
    if isinstance(operator, SumOperator):
        operator = operator.left
    return operator if isinstance(operator, MeanCurvature) else None
