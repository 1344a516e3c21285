"""What a long job tells while it runs: one task at a time, with a total where it is known.

The library calls `Progress`; what is drawn is the caller's choice. `Silent` draws nothing and is the default;
`Bars` draws a rich progress bar with rate and time left.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from stagetrace.plaintext import printable
from stagetrace.terminal import terminal

Advance = Callable[..., None]
"""`advance(n, note="")`: n more units are done; the note replaces the one shown."""


class Progress(Protocol):
    """Where a job says what it is doing."""

    def task(self, what: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """Begin a task of `total` `unit`s (None: not known); the context's value advances it."""
        ...


@final
class Silent:
    """Draws nothing."""

    @contextmanager
    def task(self, what: str, total: int | None, unit: str) -> Generator[Advance]:
        del what, total, unit
        yield lambda n=1, note="": None


class _Rate(ProgressColumn):
    """Units per second."""

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:,.2g}/s", style="cyan")


@final
class Bars:
    """Draws rich progress bars: what, how far, rate, time left, and a note (the residual of a solve)."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or terminal(stderr=True)

    @contextmanager
    def task(self, what: str, total: int | None, unit: str) -> Generator[Advance]:
        columns: tuple[ProgressColumn, ...] = (
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[unit]}", style="dim", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with RichProgress(*columns, console=self.console) as bars:
            bar = bars.add_task(printable(what), total=total, unit=printable(unit), note="")
            yield lambda n=1, note="": bars.update(bar, advance=n, note=printable(note))
