"""jsonl: an object a line, in one file or in many."""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa

from stagetrace.corpora.files import Files, Places, Shard, called, found, place_of, refuse_nothing
from stagetrace.errors import DataError
from stagetrace.stages.ids import as_id
from stagetrace.stages.own_ids import COLUMN

__all__ = ["Jsonl"]

_AHEAD = 256
"""Lines that are fetched with one: examples are mostly read one after the other."""

_BYTES = 2**20
"""Bytes of them, at most, where there is more than one line."""

_CHUNK = 2**24
"""Bytes that are looked through at once for the ends of lines."""

_WHERE = "stagetrace.corpora.Jsonl"


@final
class Jsonl:
    r"""The lines of jsonl files as a map-style data set of dicts.

    Each file is read once when the data set is made: every line is checked, and where it begins is kept, 8 bytes an
    example. After that an example is read from its file when it is asked for, and nothing else is held. Blank lines
    are passed over.

    Args:
        files: a path, a pattern such as `"corpus/*.jsonl"` (files in the order of their names), or a list of these.

    Raises:
        DescriptionError: no such files, or a packed one.
        DataError: a line is no JSON object, is not in UTF-8, or is cut off; file and line are named.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.jsonl"
        ...     _ = path.write_text('{"id": "x", "text": "one"}\n{"id": "y", "text": "two"}\n')
        ...     lines = Jsonl(path)
        ...     len(lines), lines[1], lines.place(1) == f"{path}, line 2"
        (2, {'id': 'y', 'text': 'two'}, True)
    """

    def __init__(self, files: str | Path | Sequence[str | Path]) -> None:
        shards = found(files, ".jsonl", _WHERE)
        starts, names, counts = array("q"), _Names(), list[int]()
        self.column_names: tuple[str, ...] = ()
        for shard in shards:
            before = len(starts)
            for start, row in _lines(shard):
                if not starts:
                    self.column_names = tuple(row)
                starts.append(start)
                names.add(row)
            counts.append(len(starts) - before)
            starts.append(shard.size)  # where the last line of the file ends
            shard.check()
        self._files, self._places = Files(shards), Places(counts)
        self._starts = np.frombuffer(starts, dtype=np.int64)
        self._names = names.array()
        self._held, self._first = list[bytes](), 0
        if not len(self):
            refuse_nothing(shards, _WHERE, "no line")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = index - self._first if hasattr(index, "__index__") else -1
        if not 0 <= place < len(self._held):
            place = self._fetch(place_of(index, self))
        row: dict[str, Any] = json.loads(self._held[place])
        return row

    def column(self, name: str) -> Iterable[Any]:
        """One value a line; the files are read once for it, unless they are the ids, which are known.

        Raises:
            DataError: a line has no such key.
        """
        if name == COLUMN and self._names is not None:
            return self._names
        return (self._value(index, name) for index in range(len(self)))

    def place(self, index: int) -> str:
        """Where an example lies: file and line, blank lines counted."""
        index = place_of(index, self)
        number, _ = self._places.of(index)
        stop, line = int(self._starts[index + number]), 1
        for start in range(0, stop, _CHUNK):
            line += self._files.read(number, start, min(_CHUNK, stop - start)).count(b"\n")
        return f"{self._files.shards[number].path}, line {line}"

    def _value(self, index: int, name: str) -> Any:
        row = self[index]
        if name not in row:
            raise DataError(f"{self.place(index)} has no key '{name}'; it has {', '.join(map(repr, row))}")
        return row[name]

    def _fetch(self, index: int) -> int:
        """Hold the line of an example and those behind it, in the place of what was held; its place is 0."""
        number, _ = self._places.of(index)
        first = index + number  # each file before has one more start than lines
        ahead = self._starts[first : first + 1 + min(_AHEAD, int(self._places.ends[number]) - index)]
        most = max(2, int(np.searchsorted(ahead, ahead[0] + _BYTES, side="right")))
        bounds: list[int] = ahead[:most].tolist()
        content = self._files.read(number, bounds[0], bounds[-1] - bounds[0])
        self._held = [content[begin - bounds[0] : end - bounds[0]] for begin, end in pairwise(bounds)]
        self._first = index
        return 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": [], "_first": 0}

    def __repr__(self) -> str:
        return f"Jsonl({len(self):,} lines of {called(self._files.shards)})"


@final
class _Names:
    """The values of the key `id`, as long as every line has one that can serve."""

    def __init__(self) -> None:
        self._some: list[str] | None = []
        self._whole = list[Any]()

    def add(self, row: dict[str, Any]) -> None:
        if self._some is None:
            return
        name = as_id(row.get(COLUMN))
        if name is None:
            self._some = None
            return
        self._some.append(name)
        if len(self._some) == 10_000:
            self._keep()

    def array(self) -> Any:
        if self._some is None:
            return None
        self._keep()
        return pa.concat_arrays(self._whole)

    def _keep(self) -> None:
        try:
            self._whole.append(pa.array(self._some, pa.large_string()))
            self._some = []
        except (UnicodeEncodeError, pa.ArrowInvalid):  # half of a surrogate pair: said where ids are made of the column
            self._some = None


def _lines(shard: Shard) -> Iterator[tuple[int, dict[str, Any]]]:
    """Where each line of a file begins, and what it says."""
    start, here = 0, 0
    with shard.path.open("rb") as file:
        for number, line in enumerate(file, 1):
            here, start = start, start + len(line)
            if line.isspace():
                continue
            yield here, _object(line, shard.path, number)


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as cause:
        raise DataError(f"{where} is not in UTF-8 (byte {cause.start} of the line); write the file in UTF-8") from cause
    except (ValueError, RecursionError) as cause:
        cut = "" if line.endswith(b"\n") else ", and the file ends there: was it cut off?"
        raise DataError(f"{where} is not JSON ({cause}){cut}") from cause
    if not isinstance(row, dict):
        raise DataError(f"{where} must be an object with named values, {{...}}, got a {type(row).__name__}")
    return row
