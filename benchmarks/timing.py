"""Seconds of several pieces of work, taken in turn: A B C, A B C, ...

A slow spell of the machine then hits all of them, and the quotient within one repetition hardly notices.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, final

import torch

Work = Callable[[], object]


@final
@dataclass(frozen=True)
class Times:
    """Seconds of one piece of work, one entry per repetition."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)

    def over(self, other: "Times") -> float:
        """How many times the other, repetition by repetition; the median."""
        return median(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))

    def plain(self) -> dict[str, Any]:
        return {"median_seconds": self.median, "least_seconds": self.least, "repetitions": len(self.seconds)}


def once(work: Work) -> float:
    """Seconds of one call, the device's queue waited for."""
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def in_turn(works: Mapping[str, Work], repetitions: int, warmups: int = 1) -> dict[str, Times]:
    """Each piece of work once per repetition, in turn, after some rounds that do not count."""
    for _ in range(warmups):
        for work in works.values():
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    gc.collect()
    gc.disable()  # a collection in the middle of one would be charged to it
    try:
        for _ in range(repetitions):
            for name, work in works.items():
                taken[name].append(once(work))
    finally:
        gc.enable()
    return {name: Times(tuple(seconds)) for name, seconds in taken.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
