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
Clock = Callable[[], float]


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


def once(work: Work, calls: int = 1, clock: Clock = time.perf_counter) -> float:
    """Seconds of a call, the mean of several in a row, the device's queue waited for."""
    _wait()
    started = clock()
    for _ in range(calls):
        work()
    _wait()
    return (clock() - started) / calls


def in_turn(
    works: Mapping[str, Work], repetitions: int, warmups: int = 1, calls: int = 1, clock: Clock = time.perf_counter
) -> dict[str, Times]:
    """Each piece of work once per repetition, in turn, after some rounds that do not count.

    calls: where a piece of work is one of many in a row when it is really used, as a product in a solve, a turn is
        one call that does not count (the caches still hold what the others left) and then so many that do.
    clock: `time.process_time` counts the processor's seconds, of all threads.
    """
    for _ in range(warmups):
        for work in works.values():
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    gc.collect()
    gc.disable()  # a collection in the middle of one would be charged to it
    try:
        for _ in range(repetitions):
            for name, work in works.items():
                if calls > 1:
                    work()
                taken[name].append(once(work, calls, clock))
    finally:
        gc.enable()
    return {name: Times(tuple(seconds)) for name, seconds in taken.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
