"""The files of a corpus: found by name, read at places, and noticed when they change while they are in use."""

import operator
import os
from collections.abc import Generator, Iterable, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NoReturn, final

import numpy as np
import numpy.typing as npt

from stagetrace.errors import DataError, StagetraceError, first_line, refuse

__all__ = ["Files", "NoSuchExampleError", "Places", "Shard", "called", "found", "place_of", "reading", "refuse_nothing"]

OPEN = 8
"""Files that are held open at once."""

PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".br", ".tgz", ".zip")

BEGINS = {
    b"\x1f\x8b": "gzip",
    b"BZh91AY&SY": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"(\xb5/\xfd": "zstd",
    b'\x04"M\x18': "lz4",
    b"PK\x03\x04": "zip",
}
"""How a packed file begins, whatever it is called; neither JSON, nor Parquet, nor a tar file's first name does."""


@final
@dataclass(frozen=True)
class Shard:
    """A file as it was when the corpus was described: its size in bytes, and when it was last written, in ns."""

    path: Path
    size: int
    modified: int

    @staticmethod
    def of(path: Path) -> "Shard":
        state = path.stat()
        return Shard(path, state.st_size, state.st_mtime_ns)

    def check(self) -> None:
        """Refuse a file that is no longer as it was.

        Raises:
            DataError: it has another size or time, or is gone.
        """
        with reading(self.path):
            now = Shard.of(self.path)
        if now != self:
            raise DataError(
                f"{self.path} was written while it was in use: it had {self.size:,} bytes when the corpus was made, "
                f"and has {now.size:,}; make the corpus again, and trace again"
            )


def found(files: Any, ending: str, what: str) -> tuple[Shard, ...]:
    """The files that are meant, in order: of a pattern in the order of their names, of a list in its own.

    files: a path, a pattern with `*` (`**` for any depth), or several of these. ending: such as ".jsonl".

    Raises:
        DescriptionError: there is none, one comes twice, or one is a folder, packed, or of another kind.
    """
    given: list[Any] = [files] if isinstance(files, (str, Path)) else list(files)
    paths = list[Path]()
    for one in given:
        if not isinstance(one, (str, Path)):
            refuse(f"{what}: files must be a path, a pattern ('corpus/*{ending}'), or a list of these, got {one!r}")
        paths += _of_pattern(str(one), ending, what)
    if not paths:
        refuse(f"{what}: no files were given; type a path, or a pattern such as 'corpus/*{ending}'")
    seen = set[Path]()
    for path in paths:
        packed = path.suffix if path.suffix in PACKED else _packed(path)
        if packed:
            refuse(
                f"{what}: {path} is packed ({packed}), so that single examples cannot be read from it; unpack it "
                "first, or give its rows to stagetrace.corpora.Stream(rows, length=n, spill='FOLDER')"
            )
        if path.suffix != ending:
            refuse(f"{what}: {path} does not end in {ending}")
        if path.resolve() in seen:
            refuse(f"{what}: {path} is there twice, and each of its examples would be, too")
        seen.add(path.resolve())
    shards = tuple(map(Shard.of, paths))
    if not sum(shard.size for shard in shards):
        refuse_nothing(shards, what, "nothing at all")
    return shards


def called(shards: Sequence[Shard]) -> str:
    """Some files in a message: the first one's path, and how many others there are."""
    others = len(shards) - 1
    return f"{shards[0].path}{f' and {others:,} other' if others else ''}{'s' if others > 1 else ''}"


def refuse_nothing(shards: Sequence[Shard], what: str, nothing: str) -> NoReturn:
    """Refuse files without an example; nothing: what they hold, such as "no line"."""
    raise DataError(f"{what}: {called(shards)} hold{'' if shards[1:] else 's'} {nothing}")


@final
class NoSuchExampleError(DataError, IndexError):
    """No example has that index."""


def place_of(index: Any, corpus: Sized) -> int:
    """The index of one of a corpus' examples from 0 on; one below 0 counts from the end.

    Raises:
        NoSuchExampleError: none has it (an IndexError, too, by which loops over the examples end).
        DescriptionError: it is no whole number.
    """
    if isinstance(index, slice):
        refuse(
            f"{corpus!r}: examples are read one by one, not as a slice; type "
            f"[rows[i] for i in range(len(rows))[{_bounds(index)}]], or torch.utils.data.Subset for a part of the data"
        )
    try:
        number = operator.index(index)
    except TypeError:
        refuse(f"{corpus!r}: an example is known by its number, got {index!r}")
    total = len(corpus)
    if not -total <= number < total:
        raise NoSuchExampleError(f"{corpus!r}: there is no example {number:,}; there are {total:,}, counted from 0")
    return number % total


def _bounds(index: slice) -> str:
    start, stop, step = ("" if part is None else str(part) for part in (index.start, index.stop, index.step))
    return f"{start}:{stop}" + (f":{step}" if step else "")


def _packed(path: Path) -> str | None:
    """How a file is packed, by how it begins; None where it is not."""
    with reading(path), path.open("rb") as file:
        begins = file.read(max(map(len, BEGINS)))
    return next((kind for mark, kind in BEGINS.items() if begins.startswith(mark)), None)


def _of_pattern(text: str, ending: str, what: str) -> list[Path]:
    if has_magic(text) and not Path(text).exists():
        names = sorted(glob(text, recursive=True))
        if not names:
            refuse(f"{what}: no file fits the pattern {text!r}")
        return [Path(name) for name in names if not Path(name).is_dir()]
    path = Path(text)
    if path.is_dir():
        refuse(f"{what}: {text} is a folder; type '{path / ('*' + ending)}' for the files in it")
    if not path.is_file():
        refuse(f"{what}: there is no file {text}")
    return [path]


@contextmanager
def reading(path: Path, place: str = "") -> Generator[None]:
    """Says which file could not be read, and where in it, whatever the reading raised.

    Raises:
        DataError: in place of any error but the library's own.
    """
    try:
        yield
    except StagetraceError:
        raise
    except Exception as cause:
        where = f"{path}{', ' if place else ''}{place}"
        raise DataError(
            f"{where} cannot be read ({type(cause).__name__}: {first_line(cause)}); is the file whole?"
        ) from cause


@final
class Files:
    """Reads bytes at places of files, each process by its own handles; the files are the ones that were described."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self._open: dict[int, int] = {}

    def read(self, number: int, start: int, size: int) -> bytes:
        """`size` bytes of file `number` from `start` on.

        Raises:
            DataError: the file was changed, or ends earlier.
        """
        shard = self.shards[number]
        with reading(shard.path):
            handle = self._handle(number)
            state = os.fstat(handle)
            if (state.st_size, state.st_mtime_ns) != (shard.size, shard.modified):
                shard.check()
            content = os.pread(handle, size, start)  # has no position of its own that forked processes would share
        if len(content) != size:
            raise DataError(f"{shard.path} ends within the example at byte {start:,}; is the file whole?")
        return content

    def _handle(self, number: int) -> int:
        if number not in self._open:
            self.shards[number].check()
            while len(self._open) >= OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[number] = os.open(self.shards[number].path, os.O_RDONLY)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "_open": {}}

    def __del__(self) -> None:
        for handle in getattr(self, "_open", {}).values():
            with suppress(OSError):
                os.close(handle)


@final
class Places:
    """Which file an example lies in: examples are counted through the files in their order.

    Example:
        >>> places = Places([3, 0, 2])
        >>> len(places), places.of(2), places.of(3)
        (5, (0, 2), (2, 0))
    """

    def __init__(self, counts: Iterable[int]) -> None:
        self.ends: npt.NDArray[np.int64] = np.cumsum(np.fromiter(counts, dtype=np.int64))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def of(self, index: int) -> tuple[int, int]:
        """The number of the file, and the place in it; both from 0."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return number, index - (int(self.ends[number - 1]) if number else 0)
