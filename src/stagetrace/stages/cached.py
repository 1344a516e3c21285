"""Batches that are needed again and again: read once, and kept as long as they are small."""

from collections.abc import Iterator, Sequence
from typing import final

from torch import Tensor
from torch.utils._pytree import tree_leaves

from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk

BATCH_BYTES = 2**28
"""What a process keeps of the examples it has read, at most, where nothing else is said."""


@final
class CachedBatches:
    """The batches of a plan as `risk.read` gives them, kept by the first pass if all take at most `budget` bytes."""

    def __init__(self, risk: Risk, plan: Sequence[Sequence[int]], budget: int = BATCH_BYTES) -> None:
        self.risk, self.plan, self.budget = risk, plan, budget
        self._kept: list[Batch] | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        read, size = list[Batch](), 0
        for batch in self.risk.read(self.plan):
            size += bytes_of(batch)
            if size <= self.budget:
                read.append(batch)
            else:
                read.clear()
            yield batch
        if size <= self.budget:
            self._kept = read


def bytes_of(batch: Batch) -> int:
    """What the tensors of a batch take."""
    tensors = (leaf for leaf in tree_leaves(batch.content) if isinstance(leaf, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
