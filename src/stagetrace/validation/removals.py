"""Which examples of a stage are removed: those of the largest scores, random ones, random groups."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.stages.stage import check_count

Removal = tuple[int, ...]
"""The examples that are removed together, ascending."""


class RemovalPlan(ABC):
    """A rule that chooses which removals are measured.

    by: the fraction of each example's weight that is removed: 1 removes it, 0.1 a tenth, where a derivative must hold.
    """

    by: float

    @property
    @abstractmethod
    def name(self) -> str:
        """As text, for tables and files."""

    @abstractmethod
    def removals(self, examples: int, predicted: Tensor) -> list[Removal]:
        """The removals for a stage of that many examples; predicted: `[examples]`, the estimator's removal effects."""

    @property
    def _share(self) -> str:
        return "" if self.by == 1 else f", {self.by:g} of each"

    @staticmethod
    def _drawn(seed: int) -> str:
        return f", seed {seed}" if seed else ""


@final
@dataclass(frozen=True)
class TopRemovals(RemovalPlan):
    """The `count` examples with the largest absolute predicted effect."""

    count: int = 50
    by: float = 1.0

    def __post_init__(self) -> None:
        _check(self.count, self.by, "TopRemovals")

    @property
    def name(self) -> str:
        return f"{self.count} largest{self._share}"

    def removals(self, examples: int, predicted: Tensor) -> list[Removal]:
        order = predicted.abs().argsort(descending=True, stable=True)
        return [(index,) for index in order[: self.count].tolist()]


@final
@dataclass(frozen=True)
class RandomRemovals(RemovalPlan):
    """`count` examples drawn by the seed, independently of any score."""

    count: int = 50
    by: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.count, self.by, "RandomRemovals")

    @property
    def name(self) -> str:
        return f"{self.count} at random{self._drawn(self.seed)}{self._share}"

    def removals(self, examples: int, predicted: Tensor) -> list[Removal]:
        del predicted
        order = torch.randperm(examples, generator=torch.Generator().manual_seed(self.seed))
        return [(index,) for index in order[: self.count].tolist()]


@final
@dataclass(frozen=True)
class GroupRemovals(RemovalPlan):
    """`count` groups of a share of all examples, each drawn by the seed, independently of any score.

    share: of the stage's examples in a group, above 0 and below 1.
    """

    share: float = 0.1
    count: int = 50
    seed: int = 0
    by: float = 1.0

    def __post_init__(self) -> None:
        _check(self.count, self.by, "GroupRemovals")
        if not 0 < self.share < 1:
            refuse(f"GroupRemovals: share must be above 0 and below 1, such as 0.1, got {self.share!r}")

    @property
    def name(self) -> str:
        return f"{self.count} groups of {self.share:.3g}{self._drawn(self.seed)}{self._share}"

    def removals(self, examples: int, predicted: Tensor) -> list[Removal]:
        del predicted
        size = max(1, round(self.share * examples))
        generator = torch.Generator().manual_seed(self.seed)
        draws = (torch.randperm(examples, generator=generator)[:size] for _ in range(self.count))
        return [tuple(sorted(draw.tolist())) for draw in draws]


def predicted_effects(removal_effect: Tensor, removals: list[Removal], by: float) -> Tensor:
    """The predicted effect of each removal: the sum of its members' effects, times `by`.

    removal_effect: `[n]`, or `[queries, n]`; returns `[removals]`, or `[queries, removals]`.
    """
    return by * torch.stack([removal_effect[..., list(removal)].sum(dim=-1) for removal in removals], dim=-1)


def _check(count: int, by: float, what: str) -> None:
    check_count(count, f"{what}(count=...)")
    if not 0 < by <= 1:
        refuse(f"{what}: by must be above 0 (a part of each example's weight) and at most 1 (all of it), got {by!r}")
