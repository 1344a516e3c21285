"""Labels of examples: the same share of each class dropped, and whole sources side by side."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import Tensor

from stagetrace.curate.rules import Rule
from stagetrace.errors import refuse
from stagetrace.validation.agreement import Interval, bootstrap, percentiles

Labels = Sequence[object]
"""One value an example: its class, or the source that it came from."""

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


def balanced(scores: Tensor, rule: Rule, classes: Labels) -> list[int]:
    """The indices to drop, ascending: of each class the same share, and within each class as the rule chooses."""
    members = by_label(classes)
    quotas = shares([len(indices) for indices in members.values()], rule.count(scores))
    dropped = list[int]()
    for indices, quota in zip(members.values(), quotas, strict=True):
        dropped += [indices[place] for place in rule.choose(scores[indices], quota)]
    return sorted(dropped)


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """`count` divided in proportion to the sizes; what rounding leaves goes to the largest remainders.

    Example:
        >>> shares([50, 30, 20], 10), shares([5, 5, 5], 4)
        ([5, 3, 2], [2, 1, 1])
    """
    total = sum(sizes)
    quotas = [count * size // total for size in sizes]
    # exact in whole numbers; the sort is stable, so that equal remainders go to the earlier class
    by_remainder = sorted(range(len(sizes)), key=lambda place: -(count * sizes[place] % total))
    for place in by_remainder[: count - sum(quotas)]:
        quotas[place] += 1
    return quotas


def by_label(labels: Labels) -> dict[object, list[int]]:
    """The indices of each label's examples, labels in the order in which they first appear."""
    found: dict[object, list[int]] = {}
    for index, label in enumerate(labels):
        found.setdefault(label, []).append(index)
    return found


def validated_labels(labels: Labels, examples: int, what: str) -> tuple[object, ...]:
    """The labels as plain values that can be compared and written.

    Raises:
        DescriptionError: another number of them than examples, a mapping, a set or a single text in their place, or
            values such as lists that are no labels.
    """
    if isinstance(labels, (Mapping, Set, str, bytes)):
        refuse(
            f"{what}: there must be one value for each example, in their order, in a sequence, got a "
            f"{type(labels).__name__}"
        )
    plain = tuple(map(_plain, labels))
    if len(plain) != examples:
        refuse(f"{what}: there must be one value for each of the {examples:,} examples, got {len(plain):,}")
    for index, label in enumerate(plain):
        if not isinstance(label, str | int | float | bool | None):
            refuse(
                f"{what}: a value must be a text or a number, got a {type(label).__name__} for example {index}; "
                "name a column of labels"
            )
    return plain


def _plain(label: object) -> object:
    """A label as Python has it; NaN, which equals nothing, as a text."""
    value = label.item() if isinstance(label, Tensor | np.generic) else label
    return "nan" if isinstance(value, float) and value != value else value
