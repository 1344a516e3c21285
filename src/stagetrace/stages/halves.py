"""Batches that do not fit into memory: computed in halves, and in no larger pieces from then on.

What is computed is a sum over examples, or has an entry for each, so that its pieces give the same numbers to rounding.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from stagetrace.errors import DataError, StagetraceWarning, first_line
from stagetrace.stages.data import Batch, Examples
from stagetrace.stages.risk import Risk

__all__ = ["by_halves", "halvings", "is_out_of_memory", "shrink", "within"]

T = TypeVar("T")

_WORDS = ("can't allocate memory", "not enough memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""How PyTorch says on the CPU, and libraries on a GPU, what an `OutOfMemoryError` says."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, be it said by an error of ours that this one caused."""
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS):
            return True
        error = error.__cause__
    return False


def by_halves(
    risk: Risk, what: str, batches: Iterable[Batch], compute: Callable[[Batch], T]
) -> Iterator[tuple[Batch, T]]:
    """What `compute` makes of each batch, in order; of the halves of one for which memory runs out, and so on.

    what: what is computed, as messages name it; how many examples memory held is remembered for each.

    Raises:
        DataError: memory runs out for one example alone.
    """
    for batch in batches:
        yield from _computed(risk, what, batch, compute)


def within(examples: Examples, what: str, size: int) -> int:
    """Of so many examples, how many memory is known to hold at once."""
    return min(size, examples.held.get(what, size))


def shrink(examples: Examples, what: str, size: int, error: BaseException) -> int:
    """Half of so many examples, after memory ran out for them; said once for each thing that is computed.

    Raises:
        DataError: it was one example.
    """
    if size <= 1:
        raise DataError(
            f"{examples.where}: memory ran out for one example alone, for {what} ({first_line(error)}); use a smaller "
            "model or shorter examples, a device with more memory, or activation checkpointing"
        ) from error
    if what not in examples.held:
        warnings.warn(
            f"{examples.where}: memory ran out for {size:,} examples at once, for {what}; it goes on with fewer, which "
            "changes no result but by rounding",
            StagetraceWarning,
            stacklevel=3,
        )
    examples.held[what] = size // 2
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what the attempt left in pieces
    return size // 2


def halvings(examples: Examples) -> list[str]:
    """What memory held, where it was less than asked for."""
    return [
        f"{examples.where}: memory ran out, so that {what} took {size:,} examples at once"
        for what, size in examples.held.items()
    ]


def _computed(risk: Risk, what: str, batch: Batch, compute: Callable[[Batch], T]) -> Iterator[tuple[Batch, T]]:
    size = within(risk.examples, what, len(batch))
    if size == len(batch):
        try:
            yield batch, compute(batch)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            size = shrink(risk.examples, what, size, error)
        # outside of the handler, where the error's frames no longer hold what did not fit
    for piece in risk.read(_pieces(batch.indices, size)):
        yield from _computed(risk, what, piece, compute)


def _pieces(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
