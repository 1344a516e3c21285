"""Which examples the checks use: those on which an error is most likely to show."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from stagetrace.stages.data import Examples
from stagetrace.stages.halves import within
from stagetrace.stages.rows import PlainCollation

TOGETHER = 16
"""Fewest examples that are evaluated together, where the data set has them: curvature does not keep to a batch size."""

CHECKS = "the checks"
"""What memory may run out for, see `stages.halves`."""

ALONE = 8
"""Examples that are evaluated one by one as well."""

WORK = 1e10
"""Floating-point operations of a forward pass over the examples that are looked at, where they would take more: then
they are fewer, but the shortest, the longest, the first and the last in any case."""

LEAST, LEAST_ALONE = 4, 2

MEASURED = 20_000
"""Most examples whose length is read; of a larger data set they are drawn by a seed."""

TOGETHER_READ = 4000
"""Of these, so many are read in the order in which they lie."""

SECONDS = 10.0
"""Of processor time for that; the rest is chosen at random."""


@final
@dataclass(frozen=True)
class Lookout:
    """Some examples: the shortest and the longest, the first, the last, and others drawn at random.

    together: a batch of the real size, short and long ones in turn, so that a collation that reorders is seen too;
        by_length: the same, from the shortest to the longest; alone: a few of the former.
    measured: of how many examples the length is known; 0 where all have the same by construction.
    """

    together: tuple[int, ...]
    by_length: tuple[int, ...]
    alone: tuple[int, ...]
    measured: int

    @property
    def short(self) -> tuple[int, ...]:
        """Two short ones, and not the shortest, which may be empty: a sixth and a third of the way to the longest."""
        last = len(self.by_length) - 1
        places = {min(last, max(1, len(self.by_length) // share)) for share in (6, 3)}
        return tuple(self.by_length[place] for place in sorted(places))

    @staticmethod
    def over(examples: Examples, operations: int = 0, seed: int = 0) -> "Lookout":
        """Choose them, the same for the same data set.

        operations: of a forward pass over one example; 0 where that is not known.
        """
        total = len(examples)
        most = int(WORK / operations) if operations else total
        size = within(examples, CHECKS, min(total, max(examples.batch_size, TOGETHER), max(LEAST, most)))
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        order: list[int] = drawn[: max(MEASURED, size)].tolist()
        lengths = lengths_of(examples, order)
        measured = sorted(lengths, key=lambda index: (lengths[index], index))
        kinds = [measured, measured[::-1], range(total), range(total - 1, -1, -1), order]
        chosen = _in_turn([kind for kind in kinds if kind], size)
        by_length = sorted(chosen, key=lambda index: (lengths.get(index, 0), index))
        alone = max(LEAST_ALONE, min(ALONE, most // LEAST))
        return Lookout(tuple(chosen), tuple(by_length), tuple(chosen[:alone]), len(lengths))


def lengths_of(examples: Examples, order: Sequence[int]) -> dict[int, int]:
    """How long examples are; nothing where all are alike by construction, since they could not be stacked otherwise.

    A data set with a method `length_of(index)` is asked; of any other the items are read.

    Raises:
        DataError: an example cannot be read.
    """
    data = examples.data
    if type(data) is TensorDataset or isinstance(data, (Tensor, np.ndarray)):
        return {}
    if isinstance(examples.collate, PlainCollation) and not _has_text(data[0]):
        return {}
    ask = getattr(data, "length_of", None) or (lambda index: length(data[index]))
    found: dict[int, int] = {}
    until = time.process_time() + SECONDS
    for index in _ascending(order[:MEASURED]):
        try:
            found[index] = ask(index)
        except Exception:  # the reader names the example, and says what is wrong with it
            next(iter(examples.read([[index]])))
            raise
        if time.process_time() > until:
            break
    return found


def _ascending(order: Sequence[int]) -> Iterator[int]:
    """Some thousands at a time in the order in which they lie: files are read from their beginning to their end."""
    for start in range(0, len(order), TOGETHER_READ):
        yield from sorted(order[start : start + TOGETHER_READ])


def length(item: Any) -> int:
    """The size of an example: entries of tensors and lists, characters of texts, summed over what it consists of."""
    if isinstance(item, Tensor):
        return item.numel()
    if isinstance(item, np.ndarray):
        return item.size
    if isinstance(item, (str, bytes)):
        return len(item)
    if isinstance(item, Mapping):
        return sum(map(length, item.values()))
    if isinstance(item, (list, tuple)):
        return len(item) if item and isinstance(item[0], (int, float)) else sum(map(length, item))
    return 1


def _has_text(item: Any) -> bool:
    """Whether an example holds text, which is stacked whatever its length."""
    if isinstance(item, Mapping):
        return any(map(_has_text, item.values()))
    return any(map(_has_text, item)) if isinstance(item, (list, tuple)) else isinstance(item, (str, bytes))


def _in_turn(kinds: Sequence[Sequence[int]], size: int) -> list[int]:
    """`size` different indices: one of each kind, then the next of each kind, and so on."""
    chosen: dict[int, None] = {}
    for round_ in range(max(map(len, kinds))):
        for kind in kinds:
            if round_ < len(kind) and len(chosen) < size:
                chosen.setdefault(kind[round_])
        if len(chosen) == size:
            break
    return list(chosen)
