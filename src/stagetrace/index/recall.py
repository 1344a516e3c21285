"""What the index misses: how many of the true ends of a query's ranking are among the examples that it names.

Measured while the index is built, by queries of the target, each solved through the whole chain and scored exactly
with every example of the stage: the gradients are there anyway. A search rescores as many examples from either end of
the index's ranking; whatever is among them ends in its right place, so that the recall of a search is the share of the
true top that is among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["AIM", "TOP", "Recall", "measured", "tried"]

TOP = 100
"""Examples at either end of a ranking that are looked for."""

AIM = 0.95
"""The recall that the number of rescored examples is chosen for."""

STEPS = (200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
SHARE = 0.1
"""Of a stage's examples that are rescored at most by default."""


@final
@dataclass(frozen=True)
class Recall:
    """The recall of the `top` most harmful and most helpful examples, the mean over queries and both ends.

    queries: how many it was measured with. rescored: numbers of examples that are rescored, half from either end.
    found: the recall for each of these numbers, among all examples of the stage. unseen: the same among those alone
    that the basis was not made of: what to expect of more examples of this kind. Empty where it was made of nearly all.
    """

    queries: int
    top: int
    rescored: tuple[int, ...]
    found: tuple[float, ...]
    unseen: tuple[float, ...]

    def at(self, rescored: int) -> float | None:
        """The recall, out of sample where there is such, at the largest measured number that is not above this one."""
        below = [place for place, number in enumerate(self.rescored) if number <= rescored]
        return self.honest[below[-1]] if below else None

    @property
    def honest(self) -> tuple[float, ...]:
        """`unseen`, or `found` where the basis was made of nearly all examples."""
        return self.unseen or self.found

    def enough(self) -> int:
        """The smallest number of rescored examples whose recall reaches `AIM`, or the largest that was tried."""
        reached = [number for number, recall in zip(self.rescored, self.honest, strict=True) if recall >= AIM]
        return reached[0] if reached else self.rescored[-1]


def tried(n_examples: int) -> tuple[int, ...]:
    """The numbers of rescored examples that recall is measured for: from twice `TOP` to a tenth of the examples.

    Example:
        >>> tried(22_731), tried(300)
        ((200, 500, 1000, 2000, 2273), (200,))
    """
    most = min(n_examples, max(2 * TOP, int(SHARE * n_examples)))
    return (*(step for step in STEPS if step < most), most)


def measured(exact: Tensor, approximate: Tensor, drawn: Sequence[int]) -> Recall | None:
    """The recall of approximate scores `[queries, n]` against exact ones; drawn: the examples of the basis.

    None where no query has a score.
    """
    live = exact.abs().amax(dim=1) > 0
    exact, approximate = exact[live], approximate[live]
    if not len(exact):
        return None
    n = exact.shape[1]
    top, numbers = min(TOP, max(1, n // 10)), tried(n)
    unseen = torch.ones(n, dtype=torch.bool)
    unseen[list(drawn)] = False
    every = _recalls(exact, approximate, top, numbers, n)
    some = int(unseen.sum()) > 2 * top
    others = _recalls(exact[:, unseen], approximate[:, unseen], top, numbers, n) if some else ()
    return Recall(len(exact), top, numbers, every, others)


def _recalls(exact: Tensor, approximate: Tensor, top: int, numbers: Sequence[int], stage: int) -> tuple[float, ...]:
    """stage: the number of all its examples."""
    total = torch.zeros(len(numbers), dtype=torch.float64)
    for true, said in zip(exact, approximate, strict=True):
        for sign in (1, -1):
            ends = (sign * true).topk(min(top, len(true))).indices
            # the place of each of the true top in the index's ranking from this end
            places = torch.empty(len(said), dtype=torch.int64)
            places[(sign * said).argsort(descending=True, stable=True)] = torch.arange(len(said))
            for row, number in enumerate(numbers):
                # where every example of the stage is rescored, none is missed
                total[row] += 1.0 if number >= stage else (places[ends] < number // 2).double().mean()
    return tuple((total / (2 * len(exact))).tolist())
