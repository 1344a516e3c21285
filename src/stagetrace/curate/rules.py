"""How many examples go: a share or a number of the most harmful, those above a score, or all but the most helpful."""

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import refuse

Amount = int | float
"""A whole number is a count of examples, a number between 0 and 1 a share of them."""


class Rule(ABC):
    """How many of the most harmful examples are dropped; which ones then follows from the scores.

    Sign of the scores: positive = harmful. Unit: query loss.
    """

    shares_classes = True
    """Whether the number can be divided among classes; a threshold says itself how many of each class go."""

    @property
    @abstractmethod
    def words(self) -> str:
        """As the command line has it, such as `--drop 10%`."""

    @abstractmethod
    def count(self, scores: Tensor) -> int:
        """How many examples are dropped; scores: `[n]`, positive = harmful.

        Raises:
            DescriptionError: nothing or everything would be dropped, or there are fewer examples than asked for.
        """

    def choose(self, scores: Tensor, count: int) -> list[int]:
        """The `count` largest scores' indices, ascending; of equal scores the smaller indices are dropped first."""
        return _ordered(scores, count, descending=True)


@final
@dataclass(frozen=True)
class Drop(Rule):
    """The most harmful ones: `Drop(0.1)` a tenth of the examples, `Drop(25)` 25 of them."""

    amount: Amount

    def __post_init__(self) -> None:
        check_amount(self.amount, "Drop")

    @property
    def words(self) -> str:
        return f"--drop {as_typed(self.amount)}"

    def count(self, scores: Tensor) -> int:
        return _possible(number_of(self.amount, len(scores)), len(scores), self)


@final
@dataclass(frozen=True)
class DropAbove(Rule):
    """Those with a score above `score`: `DropAbove(0.0)` drops all that are predicted to be harmful."""

    shares_classes = False

    score: float

    def __post_init__(self) -> None:
        if isinstance(self.score, bool) or not isinstance(self.score, int | float) or not math.isfinite(self.score):
            refuse(f"DropAbove: score must be a finite number, in units of the query loss, got {self.score!r}")

    @property
    def words(self) -> str:
        return f"--drop-above {self.score!r}"

    def count(self, scores: Tensor) -> int:
        return _possible(int((scores > self.score).sum().item()), len(scores), self)


@final
@dataclass(frozen=True)
class KeepTop(Rule):
    """All but the most helpful ones: `KeepTop(1000)` keeps 1,000 examples, `KeepTop(0.5)` half of them."""

    amount: Amount

    def __post_init__(self) -> None:
        check_amount(self.amount, "KeepTop")

    @property
    def words(self) -> str:
        return f"--keep-top {as_typed(self.amount)}"

    def count(self, scores: Tensor) -> int:
        return _possible(len(scores) - number_of(self.amount, len(scores)), len(scores), self)

    def choose(self, scores: Tensor, count: int) -> list[int]:
        """All but the smallest scores' indices, ascending; of equal scores the smaller indices are kept first."""
        kept = set(_ordered(scores, len(scores) - count, descending=False))
        return [index for index in range(len(scores)) if index not in kept]


def amount(word: str, option: str) -> Amount:
    """`10%` as a share, `25` as a count.

    Raises:
        DescriptionError: something else.

    Example:
        >>> amount("10%", "--drop"), amount("25", "--drop")
        (0.1, 25)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", word.strip())
    if found is None or (not found[2] and "." in found[1]):
        refuse(f"{option} takes a share such as 10% or a number of examples such as 25, got '{word}'")
    value = float(found[1]) / 100 if found[2] else int(found[1])
    check_amount(value, option)
    return value


def check_amount(value: Amount, where: str) -> None:
    """Refuse what is neither a count of at least 1 nor a share above 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(f"{where}: give a number of examples such as 25, or a share such as 0.1, got {value!r}")
    if not (value >= 1 if isinstance(value, int) else 0 < value < 1):
        refuse(
            f"{where}: a number of examples is at least 1, a share is above 0 and below 1 (0 % to 100 %); got {value!r}"
        )


def as_typed(value: Amount) -> str:
    """A count as it is, a share as a percentage."""
    return str(value) if isinstance(value, int) else f"{100 * value:.10g}%"


def number_of(value: Amount, examples: int) -> int:
    """How many of so many examples; a share is rounded to the nearest number of them, a half to the even one."""
    return value if isinstance(value, int) else round(value * examples)


def _ordered(scores: Tensor, count: int, *, descending: bool) -> list[int]:
    return sorted(map(int, torch.sort(scores, descending=descending, stable=True).indices[:count]))


def _possible(count: int, examples: int, rule: Rule) -> int:
    if not 0 < count < examples:
        what = "no example" if count <= 0 else "every example"
        refuse(f"{rule.words} drops {what} of {examples:,}; give another number, so that some go and some stay")
    return count
