"""What a piece of work takes: the processor's seconds, those on the clock, and the process's peak memory."""

import ctypes
import resource
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from stagetrace.curvature.subset import seeded_subset
from stagetrace.stages.data import Examples
from stagetrace.stages.sizes import differ, sizes_of

__all__ = ["Seconds", "Taken", "metered", "over_batches", "peak_bytes", "resident_bytes", "typical_batches"]


@final
@dataclass(frozen=True)
class Seconds:
    """Of the processor, over all its threads, and on the clock."""

    cpu: float = 0.0
    wall: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(max(0.0, self.cpu - other.cpu), max(0.0, self.wall - other.wall))

    def __mul__(self, factor: float) -> "Seconds":
        return Seconds(self.cpu * factor, self.wall * factor)

    @staticmethod
    def now() -> "Seconds":
        return Seconds(time.process_time(), time.perf_counter())


@final
@dataclass
class Taken:
    """seconds: of the work. peak: the most bytes that the process held during it, everything in it included."""

    seconds: Seconds = field(default_factory=Seconds)
    peak: int = 0


@contextmanager
def metered() -> Generator[Taken, None, None]:
    """Measure a block; the fields are set when it ends, also by an exception."""
    taken = Taken()
    _give_back()
    _forget_peak()
    started = Seconds.now()
    try:
        yield taken
    finally:
        taken.seconds = Seconds.now() - started
        taken.peak = peak_bytes()


LOOKED_AT = 8
"""Batches' worth of examples whose lengths are looked at, to find typical ones."""


def over_batches(batches: Sequence[Sequence[int]], work: Callable[[Sequence[int]], object]) -> Seconds:
    """Seconds of a pass over batches: the first, and the second as many times as there are others."""
    started = Seconds.now()
    work(batches[0])
    first = Seconds.now() - started
    if len(batches) == 1:
        return first
    started = Seconds.now()
    work(batches[1])
    second = Seconds.now() - started
    return first + second * (sum(map(len, batches[1:])) / len(batches[1]))


def typical_batches(examples: Examples, size: int) -> list[Sequence[int]]:
    """As many batches as all examples make: the first of long ones, for memory, the second of mean ones, for time.

    Examples of like length are read together, so that batches as they lie would be padded as none of them is.
    """
    plan: list[Sequence[int]] = list(examples.batch_indices(size=size))
    if len(plan) < 3 or not differ(examples):
        return plan
    seen = list(seeded_subset(len(examples), min(len(examples), LOOKED_AT * size), seed=0))
    sizes = dict(zip(seen, sizes_of(examples, seen), strict=True))
    ordered = sorted(seen, key=sizes.__getitem__)
    mean = sum(sizes.values()) / len(sizes)
    place = sum(length < mean for length in sizes.values()) - size // 2
    start = max(0, min(place, len(ordered) - size))
    return [ordered[-size:], ordered[start : start + size], *plan[2:]]


def resident_bytes() -> int:
    """Bytes of memory that the process holds now; its peak where the system does not say."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """The most bytes that the process has held at once, since the peak was last forgotten."""
    found = _status("VmHWM")  # Linux hands `ru_maxrss` down from the process that started this one
    if found is not None:
        return found
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _forget_peak() -> None:
    """Start the peak from what is held now; where that is not to be had, a peak is never below an earlier one."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _give_back() -> None:
    """Hand memory that was freed back to the system, so that it is not counted as held."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
