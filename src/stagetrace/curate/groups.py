"""Whole sources side by side: what each is predicted to do to the query loss, with how far that can be told."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from torch import Tensor

from stagetrace.curate.labels import Labels, by_label
from stagetrace.validation.agreement import Interval, bootstrap, percentiles

RESAMPLES = 1000


@final
@dataclass(frozen=True)
class GroupTotal:
    """The examples of one source.

    name: of the source. examples: how many. dropped: how many of them the rule drops.
    total: the sum of their scores; positive = harmful; unit: query loss. mean: that of one example.
    total_interval, mean_interval: 2.5 % and 97.5 % points over bootstrap samples of the source's examples: what as many
        other examples of the same source could give. (NaN, NaN) for a source of one example.
    removal_effect: the predicted change of the query loss if the whole source were removed, `-total / n` of all n
        examples of the stage, to first order; negative = removing it helps.
    """

    name: str
    examples: int
    dropped: int
    total: float
    total_interval: Interval
    mean: float
    mean_interval: Interval
    removal_effect: float

    @property
    def share_dropped(self) -> float:
        """Of the source's examples, from 0 to 1."""
        return self.dropped / self.examples


def totals(scores: Tensor, groups: Labels, drop: Iterable[int], seed: int = 0) -> tuple[GroupTotal, ...]:
    """Each source, the most harmful example by example (largest mean) first.

    scores: float64 `[n]`, positive = harmful. groups: one value an example. seed: of the bootstrap's own generator.

    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    dropped = Counter(groups[index] for index in drop)
    found = [
        _total(str(name), scores[indices], dropped[name], len(scores), seed)
        for name, indices in by_label(groups).items()
    ]
    return tuple(sorted(found, key=lambda group: -group.mean))


def _total(name: str, scores: Tensor, dropped: int, examples: int, seed: int) -> GroupTotal:
    n, total, mean = len(scores), scores.sum().item(), scores.mean().item()
    low, high = float("nan"), float("nan")
    if n > 1:
        low, high = percentiles(bootstrap(lambda drawn: scores[drawn].mean(dim=-1), n, RESAMPLES, seed))
    return GroupTotal(name, n, dropped, total, (low * n, high * n), mean, (low, high), -total / examples)
