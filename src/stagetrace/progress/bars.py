"""Progress for people: a live line on a terminal, and a line every few seconds elsewhere."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from stagetrace.plaintext import printable
from stagetrace.progress.progress import KEPT, Advance, listening
from stagetrace.progress.task import Task
from stagetrace.terminal import terminal

PERIOD = 5.0
"""Seconds between two lines where there is no terminal."""


@final
class Bars:
    """Shows the task, how far and how fast it is, the time left and a note (the residual of a solve), in one line.

    On a terminal the line is live. In a file or a pipe there is a line every few seconds, and one at the end of a task.
    """

    def __init__(
        self, console: Console | None = None, *, period: float = PERIOD, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or terminal(stderr=True)
        self._period, self._clock = period, clock

    @contextmanager
    def task(self, what: str, total: int | None, unit: str) -> Generator[Advance]:
        task = Task(printable(what), total, printable(unit), self._clock())
        show = self._moving if self.console.is_terminal else self._written
        with show(task) as changed:

            def advance(n: int = 1, note: str = "") -> None:
                task.advance(n, printable(note), self._clock(), measured=note != KEPT)
                changed()

            def hear(share: float) -> None:
                task.part = share
                changed()

            with listening(hear):
                yield advance

    @contextmanager
    def _moving(self, task: Task) -> Generator[Callable[[], None]]:
        with Live(_Line(task, self._clock), console=self.console, refresh_per_second=4):
            yield lambda: None

    @contextmanager
    def _written(self, task: Task) -> Generator[Callable[[], None]]:
        written = self._clock()

        def write() -> None:
            nonlocal written
            written = self._clock()
            self.console.print(Text(task.line(written)), soft_wrap=True)

        def changed() -> None:
            if self._clock() - written >= self._period:
                write()

        try:
            yield changed
        finally:
            write()


@final
class _Line:
    """A task's line, composed each time it is shown."""

    def __init__(self, task: Task, clock: Callable[[], float]) -> None:
        self._task, self._clock = task, clock

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console
        yield Text(self._task.line(self._clock(), options.max_width), no_wrap=True, overflow="crop")
