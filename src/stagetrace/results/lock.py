"""One process at a time writes to a run folder.

The operating system holds the lock, so it goes with its process, however that ends. Between machines whose file
system does not carry such locks, the file's time is the sign of life: renewed while the run goes on, and taken for
dead after a minute.
"""

import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final

from stagetrace.errors import ResultsError
from stagetrace.results.files import LOCK, cannot_write

HEARTBEAT = 10.0
"""Seconds between two signs of life."""

DEAD_AFTER = 60.0
"""Seconds without a sign of life after which the lock of another machine's process no longer counts."""

_HELD: Final = weakref.WeakSet["Lock"]()


@final
class Lock:
    """The right to write to a folder, held from construction until `release` or the end of the process.

    A folder that was made for nothing goes with the lock.

    Raises:
        ResultsError: another process writes there, or the file system refused.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / LOCK
        is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = _taken(folder)
        except OSError as cause:
            raise cannot_write(folder, cause) from cause
        self._stop = threading.Event()
        self.release = weakref.finalize(self, _let_go, self._path, self._descriptor, self._stop, os.getpid(), is_new)
        _HELD.add(self)
        threading.Thread(target=_beat, args=(self._path, self._stop), daemon=True).start()

    def check(self) -> None:
        """Refuse to go on in a folder that has been deleted, or that another process has taken over.

        Raises:
            ResultsError: this lock no longer lies in the folder.
        """
        if not _is_at(self._path, self._descriptor):
            raise ResultsError(
                f"{self._folder} was deleted, or taken over by another process, while this run was writing to it; "
                "run the same command again"
            )

    def forget(self) -> None:
        """In a forked child: the lock is the parent's."""
        self.release.detach()
        with suppress(OSError):
            os.close(self._descriptor)


def refuse_in_use(folder: str | Path) -> None:
    """Refuse a folder to which another process is writing, before any work is done for it; nothing is written.

    Raises:
        ResultsError: the message says which process.
    """
    writer = writer_of(Path(folder))
    if writer is not None:
        raise _in_use(Path(folder), writer)


def writer_of(folder: Path) -> str | None:
    """The process that writes to the folder, in words; None if there is none."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return None
    try:
        return _writer(descriptor) if _is_held(descriptor) else None
    finally:
        os.close(descriptor)


def _taken(folder: Path) -> int:
    """The descriptor of the lock file, locked and with this process's name in it."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        held = _is_held(descriptor)
        if not held and not _is_at(path, descriptor):  # its last holder has just removed it
            os.close(descriptor)
            continue
        if held:
            writer = _writer(descriptor)
            os.close(descriptor)
            raise _in_use(folder, writer)
        me = {"process": os.getpid(), "machine": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(me).encode())
        return descriptor


def _in_use(folder: Path, writer: str) -> ResultsError:
    return ResultsError(
        f"{folder} is in use: {writer} is writing to it; wait until it ends, or choose another folder (--out)"
    )


def _is_held(descriptor: int) -> bool:
    """Lock the file for this process; whether another one has it."""
    holder, reached = _holder(descriptor), False
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            reached = True
        except BlockingIOError:
            return True
        except OSError:  # this file system knows no locks
            pass
    if not holder or (reached and holder.get("machine") == socket.gethostname()):
        return False
    return time.time() - os.fstat(descriptor).st_mtime < DEAD_AFTER


def _holder(descriptor: int) -> Mapping[str, Any]:
    """What the lock file says; empty if its writer was killed before it said anything."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        content = json.loads(os.read(descriptor, 4096))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _writer(descriptor: int) -> str:
    holder = _holder(descriptor)
    if not holder:
        return "another process"
    return f"process {holder.get('process')} on {holder.get('machine')} (since {holder.get('since')})"


def _is_at(path: Path, descriptor: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(path)


def _let_go(path: Path, descriptor: int, stop: threading.Event, process: int, is_new: bool) -> None:
    if os.getpid() != process:
        return
    stop.set()
    if _is_at(path, descriptor):
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        os.close(descriptor)
    if is_new:
        with suppress(OSError):  # something is in it
            path.parent.rmdir()


def _after_fork() -> None:
    for lock in list(_HELD):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
