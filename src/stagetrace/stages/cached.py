"""Batches that are needed repeatedly: read once, and cached while they are small."""

from collections.abc import Iterator, Sequence
from typing import final

from torch import Tensor
from torch.utils._pytree import tree_leaves

from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk

BATCH_BYTES = 2**28
"""Bytes of examples that a process caches, by default."""


@final
class CachedBatches:
    """The batches of a plan as `risk.read` gives them, cached in the first pass if all fit into `budget` bytes."""

    def __init__(self, risk: Risk, plan: Sequence[Sequence[int]], budget: int = BATCH_BYTES) -> None:
        self.risk, self.plan, self.budget = risk, plan, budget
        self._cached: list[Batch] | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        if self._cached is not None:
            yield from self._cached
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
            self._cached = read


def bytes_of(batch: Batch) -> int:
    """The bytes of a batch's tensors."""
    tensors = (leaf for leaf in tree_leaves(batch.content) if isinstance(leaf, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
