"""Work that a training does not wait for: done by a thread of its own, one piece after the other."""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import final

ROOM = 1
"""How many pieces may wait beside the one that is being done; each may hold a copy of a training's state."""


@final
class Background:
    """Pieces of work, done in the order in which they came, beside the thread that gives them.

    The thread is there only while there is work: a program ends when the last piece is done, without being told, and
    where it forks (a loader's workers) that is waited for first, so that no fork happens in the middle of a file.

    failure: what the first piece that failed raised; the pieces after it are not done any more. seconds: of the
    processor that the thread has taken.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._running = False
        self._changed = threading.Condition()
        self.failure: BaseException | None = None
        self.seconds = 0.0
        _ALL.add(self)

    def do(self, work: Callable[[], None]) -> None:
        """Have a piece done; waits while there is no room for it."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < ROOM)
            self._waiting.append(work)
            if not self._running:
                self._running = True
                self._thread = threading.Thread(target=self._run, name="stagetrace recording")
                self._thread.start()

    def wait(self) -> None:
        """Until all is done, and the thread is no more."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        started = time.thread_time()
        while True:
            with self._changed:
                if not self._waiting:
                    self.seconds += time.thread_time() - started
                    self._running = False
                    return
                work = self._waiting.popleft()
                self._changed.notify_all()
            if self.failure is None:
                try:
                    work()
                except BaseException as cause:
                    self.failure = cause
            del work  # what it held need not be in memory while the next one is waited for


_ALL: "weakref.WeakSet[Background]" = weakref.WeakSet()


def _settle() -> None:
    for each in list(_ALL):
        each.wait()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_settle)
