"""Which states of a training are kept: at a distance, by the square root of the steps, or as many as fit."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, final

from stagetrace.errors import refuse

UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@final
@dataclass
class Spacing:
    """Before which steps the state is kept.

    every: a number of steps; "auto": before the steps 0, 1, 4, 9, 16, ..., or every root of the steps where their
        number is known; "200 MB": the same, but every other state is dropped whenever they do not fit.

    With squares neither the number of states nor the longest way between two of them outgrows the square root of the
    steps (by more than twice), without the number of steps being known beforehand.
    """

    every: int | str

    def __post_init__(self) -> None:
        self.budget: int | None = None
        self._distance: int | None = None
        self._of = 1
        """Only every so manieth of those states is kept."""
        if isinstance(self.every, int) and not isinstance(self.every, bool) and self.every > 0:
            self._distance = self.every
        elif isinstance(self.every, str) and self.every != "auto":
            self.budget = _bytes(self.every)
        elif self.every != "auto":
            _refuse(self.every)

    def told(self, steps: int) -> None:
        """How many steps there will be."""
        if not isinstance(self.every, int) and steps > 0:
            self._distance = math.isqrt(steps - 1) + 1

    def __call__(self, step: int) -> bool:
        if self._distance is not None:
            return step % (self._distance * self._of) == 0
        root = math.isqrt(step)
        return root**2 == step and root % self._of == 0

    def dropped(self, sizes: Mapping[int, int]) -> list[int]:
        """Which states to drop, so that there is room for one more; the first stays.

        sizes: the bytes of each state, by its step.

        Raises:
            DescriptionError: the budget is less than two states.
        """
        if self.budget is None or not sizes:
            return []
        left, one = dict(sizes), max(sizes.values())
        if 2 * one > self.budget:
            refuse(
                f"Recording: every={self.every!r} is less than the two states that are kept at least, of "
                f"{in_bytes(one)} each; allow {in_bytes(2 * one)} or more"
            )
        while sum(left.values()) + one > self.budget and len(left) > 1:
            self._of *= 2
            left = {step: size for step, size in left.items() if self(step)}
        return [step for step in sizes if step not in left]


def _bytes(text: str) -> int:
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", text)
    units = {unit.lower(): size for unit, size in UNITS.items()}
    if found is None or found[2].lower() not in units or not float(found[1]):
        _refuse(text)
    return int(float(found[1]) * units[found[2].lower()])


def _refuse(every: object) -> NoReturn:
    refuse(
        f"Recording: every must be a number of steps, at least 1, 'auto' or a budget such as '200 MB', got {every!r}"
    )


def in_bytes(count: float) -> str:
    """A number of bytes for reading.

    Example:
        >>> in_bytes(13_600), in_bytes(2.5e9), in_bytes(312)
        ('13.6 kB', '2.5 GB', '312 B')
    """
    unit = 0
    while count >= 1000 and unit < 4:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
