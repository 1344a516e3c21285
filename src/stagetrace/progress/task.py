"""How far a task is, how fast it goes and how long it will take, in one line that fits."""

from collections import deque
from dataclasses import dataclass, field
from typing import final

WINDOW = 30.0
"""Seconds that the rate is measured over: long enough to be steady, short enough to follow."""

BAR, SHORTEST_BAR = 20, 6
"""Cells of the bar where there is room for it."""

GAP = "  "


@final
@dataclass
class Task:
    """What is being done, and what was measured of it.

    total: units in all, where it is known. part: of the unit under way, from 0 to 1. note: what else is known of it.
    """

    what: str
    total: int | None
    unit: str
    started: float
    done: int = 0
    part: float = 0.0
    note: str = ""
    _seen: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    def __post_init__(self) -> None:
        self._seen.append((self.started, 0))

    def advance(self, n: int, note: str, now: float, *, measured: bool = True) -> None:
        """`n` more units are done; ones that are not `measured` were there already."""
        self.done, self.part, self.note = self.done + n, 0.0, note
        if not measured:
            self._seen.clear()
        self._seen.append((now, self.done))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW:
            self._seen.popleft()

    @property
    def seconds_each(self) -> float | None:
        """Seconds of a unit, over the last half minute; None before any was measured."""
        (first, before), (last, done) = self._seen[0], self._seen[-1]
        return (last - first) / (done - before) if done > before else None

    def left(self) -> float | None:
        """Seconds until the total is reached at the measured rate."""
        each = self.seconds_each
        if each is None or self.total is None:
            return None
        return each * max(0.0, self.total - self.done - self.part)

    def line(self, now: float, width: int | None = None) -> str:
        """All that there is to say, without what does not fit in `width` columns: the least important goes first.

        Example:
            >>> task = Task("scoring", 1000, "examples", started=0.0)
            >>> task.advance(400, "", now=2.0)
            >>> task.line(2.0)
            'scoring  400/1,000 examples  200/s  0:03 left'
            >>> task.line(2.0, width=30)
            'scoring  400/1,000 examples'
        """
        counted, rate, time = self._counted(), self._rate(), self._time(now)
        if width is None:
            return GAP.join(filter(None, (self.what, counted, rate, self.note, time)))
        everything = (rate, self.note, time)
        fewer = (self.note, time) if self.total else (rate, self.note)  # the time left tells more than the rate
        for shown in (everything, fewer, (self.note,), ()):
            text = GAP.join(filter(None, (self.what, counted, *shown)))
            if len(text) <= width:
                return self._with_bar(text, width)
        room = width - len(counted) - len(GAP)
        return f"{self.what[: room - 1]}…{GAP}{counted}" if room > 1 else counted[:width]

    def _counted(self) -> str:
        if self.total is not None:
            return f"{self.done:,}/{self.total:,} {self.unit}"
        tenths = min(9, int(10 * self.part))
        return f"{self.done:,}{f'.{tenths}' if tenths else ''} {self.unit}"

    def _rate(self) -> str:
        each = self.seconds_each
        if not each:
            return ""
        rate = 1 / each
        return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate > 1 else f"{each:.3g} s each"

    def _time(self, now: float) -> str:
        left = self.left()
        if left is not None and self.total is not None and self.done < self.total:
            return f"{clock(left)} left"
        return clock(now - self.started)

    def _with_bar(self, text: str, width: int) -> str:
        cells = min(BAR, width - len(text) - len(GAP))
        if not self.total or cells < SHORTEST_BAR:
            return text
        full = min(cells, round(cells * (self.done + self.part) / self.total))
        return f"{text}{GAP}{'━' * full}{'╌' * (cells - full)}"


def clock(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any.

    Example:
        >>> clock(65.4), clock(3725.4)
        ('1:05', '1:02:05')
    """
    minutes, whole = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{whole:02}" if minutes >= 60 else f"{minutes}:{whole:02}"
