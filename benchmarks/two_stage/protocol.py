"""What is left out, and what is trained again: the subsets, the truths, and the sizes of both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch

from stagetrace.validation import GroupRemovals
from stagetrace.validation.removals import Removal

MEAN = "mean"
"""The query over all test examples; the others are single ones."""
RECORDED, OTHER = "recorded", "other orders"
"""The two truths, see `Protocol`."""


@final
@dataclass(frozen=True)
class Protocol:
    """One size of the benchmark; all of it is drawn by the seeds of the chains, before anything is scored.

    percents: sizes of the subsets, of the stage's examples. each: how many subsets of each size.
    orders: how many other orders of the batches. repeated: of each size, how many subsets are left out in those, too.
    seeds: of chains: data, initial values, orders and subsets are drawn anew for each.
    singles: queries beside the mean test loss, each a single test example.

    Truth "recorded": both recorded trainings repeated without the subset, batch by batch, all else equal.
    Truth "other orders": the same with the batches of both stages in another order, for a run and its control alike;
    the mean over `orders` of them. Both keep the recorded start, that of the new head included.
    """

    percents: tuple[int, ...] = (1, 2, 5, 10, 50)
    each: int = 20
    orders: int = 2
    repeated: Mapping[int, int] = field(default_factory=lambda: {2: 10, 10: 10, 50: 10})
    seeds: int = 3
    singles: int = 8

    def subsets(self, examples: int, seed: int) -> dict[str, Removal]:
        """`{"10%-03": the examples that are left out}`, ascending in size, each drawn without replacement."""
        found = dict[str, Removal]()
        for percent in self.percents:
            plan = GroupRemovals(percent / 100, self.each, seed=1000 * seed + percent)
            drawn = plan.removals(examples, torch.empty(0))
            found |= {f"{percent}%-{place:02}": members for place, members in enumerate(drawn)}
        return found

    def in_orders(self, subset: str) -> bool:
        """Whether the subset is left out in other orders, too: the first of its size are."""
        percent, place = subset.split("%-")
        return int(place) < self.repeated.get(int(percent), 0)

    @property
    def order_seeds(self) -> range:
        """Of the truth's other orders; the recorded order has the seed 0."""
        return range(1, self.orders + 1)


RECORDED_ORDER = 0
ESTIMATED_ORDERS = range(101, 109)
"""Orders in which estimators train that average over several: none is one of the truth's."""
