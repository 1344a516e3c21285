"""Queries a block at a time, where the vectors of all of them are more than memory holds."""

from collections.abc import Iterable, Iterator

from stagetrace.stages.bound import BoundStage
from stagetrace.tracing.query import Query

__all__ = ["blocks"]

VECTORS = 8
"""Vectors of parameters that a query takes at once: its gradient, its adjoint, and what solving it needs."""


def blocks(query: Query, walked: Iterable[BoundStage], memory: int) -> Iterator[Query]:
    """The query in blocks of examples whose vectors fit into `memory` bytes, or as it is.

    walked: the stages that are solved; the one with the most parameters counts.
    """
    each = VECTORS * max(bound.trained.size * bound.trained.dtype.itemsize for bound in walked)
    total, size = query.rows or 1, max(1, memory // each)
    if size >= total:
        yield query
        return
    for start in range(0, total, size):
        yield query.each_of(range(start, min(total, start + size)))
