"""Where a job reports its progress, also within a unit."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, final

Advance = Callable[..., None]
"""`advance(n, note="")`: n more units are done; the note replaces the one shown. `KEPT` units took no time."""

KEPT = "kept"
"""The note of units that an earlier run had done: they do not count for the speed of this one."""

_listener: ContextVar[Callable[[float], None] | None] = ContextVar("listener", default=None)


class Progress(Protocol):
    """Where a job reports its progress."""

    def task(self, what: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """Begin a task of `total` `unit`s (None: not known); the context's value advances it."""
        ...


def part_done(share: float) -> None:
    """Report how much of the current unit is done, from 0 to 1: a product over many examples can take seconds."""
    hear = _listener.get()
    if hear is not None:
        hear(share)


@contextmanager
def listening(hear: Callable[[float], None]) -> Generator[None]:
    """Have `hear` called by every `part_done` of this block."""
    token = _listener.set(hear)
    try:
        yield
    finally:
        _listener.reset(token)


@final
class Silent:
    """Draws nothing."""

    @contextmanager
    def task(self, what: str, total: int | None, unit: str) -> Generator[Advance]:
        del what, total, unit
        yield lambda n=1, note="": None
