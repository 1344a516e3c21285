"""Labels of examples, and what goes where each class is to lose the same share."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from stagetrace.curate.rules import Rule
from stagetrace.errors import refuse

Labels = Sequence[object]
"""One value an example: its class, or the source that it came from."""


def balanced(scores: Tensor, rule: Rule, classes: Labels) -> list[int]:
    """The indices that go, ascending: of each class the same share, and within each class as the rule chooses."""
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


def checked(labels: Labels, examples: int, what: str) -> tuple[object, ...]:
    """The labels as plain values that can be compared and written.

    Raises:
        DescriptionError: another number of them than examples, or values such as lists that are no labels.
    """
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
