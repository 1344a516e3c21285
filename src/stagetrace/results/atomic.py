"""A file appears whole or not at all: written beside its place, forced to disk, then renamed into it."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from stagetrace.errors import ResultsError

STAGING = ".saving"
"""The folder inside a run folder in which `Trace.save` builds a run before it moves it into place."""


@contextmanager
def atomic(path: Path) -> Generator[Path, None, None]:
    """Give a temporary path beside `path`; once the block has written it, it replaces `path` in one step.

    If the block raises, or the disk is full, the temporary file goes and what stood at `path` stays.

    Raises:
        ResultsError: the file system refused.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['a.txt']
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
        _force_to_disk(temporary)
        move(temporary, path)
    except OSError as cause:
        raise cannot_write(path, cause) from cause
    except UnicodeEncodeError as cause:
        half = ascii(cause.object[cause.start : cause.end])
        raise ResultsError(
            f"cannot write {path}: {half} is half a character, which no file can hold; rename what has it"
        ) from cause
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Move `source` over `target` in one step, and record the move on disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    if os.name == "posix":
        _force_to_disk(target.parent)


def cannot_write(path: Path, cause: OSError) -> ResultsError:
    """The error for a file system that refused."""
    return ResultsError(
        f"cannot write {path}: {cause.strerror or cause}; make room or allow it, then run the same command again"
    )


def is_litter(path: Path) -> bool:
    """Whether `path` is what a killed process left of a write that never happened."""
    return path.name == STAGING or (path.name.startswith(".") and path.name.endswith(".tmp"))


def sweep(folder: Path) -> None:
    """Remove what killed writes left behind, so that a resumed run ends with the same files."""
    shutil.rmtree(folder / STAGING, ignore_errors=True)
    for path in sorted(folder.rglob(".*.tmp")):
        path.unlink(missing_ok=True)


def _umask() -> int:
    """The permissions that this process takes away from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
