"""What a run will take, phase by phase: the processor's seconds, memory and disk."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from stagetrace.checks.finding import Finding, Level
from stagetrace.preflight.meter import Seconds
from stagetrace.preflight.units import as_size
from stagetrace.progress.task import clock

__all__ = ["Forecast", "Phase"]


@final
@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    where: a stage, "query" or "run". what: what is done. seconds: as expected. memory: bytes that the process holds at
    the phase's peak, everything in it included. disk: bytes that it leaves behind. how: how that was found. products:
    with a curvature, about.
    """

    where: str
    what: str
    seconds: Seconds
    memory: int
    disk: int = 0
    how: str = ""
    products: int = 0

    @property
    def text(self) -> str:
        """What is said of it."""
        kept = f", {as_size(self.disk)} on disk" if self.disk else ""
        return f"{self.what}: {seconds_text(self.seconds)}, {as_size(self.memory)} of memory{kept}; {self.how}"


@final
@dataclass(frozen=True)
class Forecast:
    """The phases of a run in their order; left_out: what is not in them, in words."""

    phases: tuple[Phase, ...]
    left_out: tuple[str, ...] = ()

    @property
    def seconds(self) -> Seconds:
        return sum((phase.seconds for phase in self.phases), Seconds())

    @property
    def largest(self) -> Phase:
        """The phase in which the process is at its largest."""
        return max(self.phases, key=lambda phase: phase.memory)

    @property
    def memory(self) -> int:
        """The process's peak, in bytes."""
        return self.largest.memory

    @property
    def disk(self) -> int:
        """Bytes that the run leaves in its folder."""
        return sum(phase.disk for phase in self.phases)

    def findings(self) -> Iterator[Finding]:
        """A line for each phase, and the sum."""
        for phase in self.phases:
            yield Finding(phase.where, "plan", Level.OK, phase.text)
        for text in self.left_out:
            yield Finding("run", "plan", Level.NOTE, f"not in the plan: {text}")
        yield Finding("run", "plan", Level.OK, self.text)

    @property
    def text(self) -> str:
        """All in one line."""
        largest = self.largest
        place = largest.what if largest.where == "run" else f"{largest.what}, {largest.where}"
        return (
            f"in all about {seconds_text(self.seconds)}; {as_size(self.memory)} of memory at its peak ({place}); "
            f"{as_size(self.disk)} on disk"
        )


def seconds_text(seconds: Seconds) -> str:
    """Of the processor, and on the clock of this machine as busy as it is.

    Example:
        >>> seconds_text(Seconds(2.345, 4.0)), seconds_text(Seconds(150.0, 75.0))
        ('2.3 s of the processor (4.0 s on the clock)', '2:30 of the processor (75.0 s on the clock)')
    """
    return f"{_duration(seconds.cpu)} of the processor ({_duration(seconds.wall)} on the clock)"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else clock(seconds)
