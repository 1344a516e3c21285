"""The first phase of a search: approximate scores of all examples, of which only both ends are held."""

from itertools import islice
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from stagetrace.index.files import codes_name, opened, part_count
from stagetrace.index.manifest import StageIndex
from stagetrace.index.store import Held, Scorer

__all__ = ["Ends", "held_of", "lookup"]


@final
class Ends:
    """The `count` largest and the `count` smallest of the numbers that are added, with their indices, by query."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: dict[bool, tuple[Tensor, Tensor]] = {}
        self._stop = 0

    def add(self, start: int, scores: Tensor) -> None:
        """Scores `[k, m]` of the examples from `start` on."""
        self._stop = start + scores.shape[1]
        for largest in (True, False):
            values, indices = scores.topk(min(self._count, scores.shape[1]), dim=1, largest=largest)
            indices = indices + start
            if largest in self._held:
                before = self._held[largest]
                values, indices = torch.cat([before[0], values], dim=1), torch.cat([before[1], indices], dim=1)
                values, best = values.topk(min(self._count, values.shape[1]), dim=1, largest=largest)
                indices = indices.gather(1, best)
            self._held[largest] = (values, indices)

    def candidates(self) -> list[list[int]]:
        """For each query the examples at either end, ascending, each once: as many for every query."""
        (_, largest), (_, smallest) = self._held[True], self._held[False]
        both = torch.cat([largest, smallest], dim=1)
        return [self._filled(set(row.tolist())) for row in both]

    def _filled(self, chosen: set[int]) -> list[int]:
        """Of equal scores the same example may stand at both ends: then the first others take the places."""
        missing = min(2 * self._count, self._stop) - len(chosen)
        others = (index for index in range(self._stop) if index not in chosen)
        return sorted([*chosen, *islice(others, missing)])


def lookup(folder: Path, stage: str, held: StageIndex, scores: Scorer, rescored: int) -> list[list[int]]:
    """The examples that are to be rescored for each query, half from either end of the index's ranking.

    scores: of the queries, by what is kept.
    """
    ends, start = Ends(-(-rescored // 2)), 0
    for number in range(part_count(held.n_examples)):
        found = scores(held_of(folder, stage, number))
        ends.add(start, found.mT)
        start += len(found)
    return ends.candidates()


def held_of(folder: Path, stage: str, number: int) -> Held:
    """What is kept of the examples of a part; the file was checked when the index was opened."""
    with opened(folder / codes_name(stage, number)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
