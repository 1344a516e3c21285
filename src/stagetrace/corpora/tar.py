"""tar shards as WebDataset writes them: files of the same name but for their endings are one example."""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import io
import json
import tarfile
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow as pa

from stagetrace.corpora.files import Files, Places, Shard, called, found, place_of, reading, refuse_nothing
from stagetrace.errors import DataError, first_line, refuse
from stagetrace.stages.ids import Ids

__all__ = ["TarShards"]

_WHERE = "stagetrace.corpora.TarShards"

BLOCK = 512
"""Bytes of a tar file's blocks."""

KEY = "__key__"
"""The field that holds an example's name, as WebDataset calls it."""

Decode = Callable[[bytes], Any]


def _text(content: bytes) -> str:
    return content.decode("utf-8")


def _picture(content: bytes) -> Any:
    from PIL import Image

    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


def _array(content: bytes) -> Any:
    return np.load(io.BytesIO(content), allow_pickle=False)


DECODE: Mapping[str, Decode] = {
    "json": json.loads,
    "txt": _text,
    "cls": int,
    "npy": _array,
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), _picture),
}
"""What becomes of a file, by its ending; of any other its bytes are given."""


@final
class TarShards:
    """The examples of tar files as a map-style data set of dicts: `{"__key__": "0001", "jpg": picture, "cls": 3}`.

    Files that follow each other and share their path up to the first dot of the name are one example, and what comes
    after the dot names the field. The headers are read once when the data set is made; an example's content is read
    when it is asked for. Its id is its key, with the file's name before it where files use the same keys.

    Args:
        files: a path, a pattern such as `"corpus/*.tar"` (files in the order of their names), or a list of these.
        decode: functions of a file's bytes, by ending, beside those of `json`, `txt`, `cls` (a whole number), `npy`,
            and images (`pillow`). Bytes stay bytes where there is none.

    Raises:
        DescriptionError: no such files, or packed ones.
        DataError: a file is cut off, or two examples have the same key.
    """

    def __init__(self, files: str | Path | Sequence[str | Path], decode: Mapping[str, Decode] | None = None) -> None:
        shards = found(files, ".tar", _WHERE)
        self._decode = {**DECODE, **(decode or {})}
        index, counts = _Index(), list[int]()
        for shard in shards:
            before = len(index.keys)
            index.add(shard)
            counts.append(len(index.keys) - before)
            shard.check()
        if not index.keys:
            refuse_nothing(shards, _WHERE, "no example")
        self._files, self._places = Files(shards), Places(counts)
        self._first = np.frombuffer(index.first, dtype=np.int64)
        self._members = np.frombuffer(index.members, dtype=np.int64).reshape(-1, 3)
        self._endings = tuple(index.endings)
        self._keys = pa.array(index.keys, pa.large_string())  # 1 million of them as a list take 70 MB
        self._ids: Ids | None = None
        self.column_names = (KEY, *(self._endings[ending] for ending in self._of(0)[:, 2]))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = place_of(index, self)
        number, _ = self._places.of(index)
        row: dict[str, Any] = {KEY: self._keys[index].as_py()}
        for start, size, ending in self._of(index).tolist():
            name = self._endings[ending]
            content = self._files.read(number, start, size)
            decode = self._decode.get(name.rpartition(".")[2].lower())
            with reading(self._files.shards[number].path, f"{row[KEY]}.{name}"):
                row[name] = content if decode is None else decode(content)
        return row

    @property
    def ids(self) -> Ids:
        """The id of each example: its key, or `file/key` where several files use the same keys."""
        if self._ids is None:
            keys: list[str] = self._keys.to_pylist()
            if len(set(keys)) < len(keys):
                paths = [shard.path for shard in self._files.shards]
                together = Path(*_common(paths))
                called = [path.relative_to(together).as_posix() for path in paths]
                keys = [f"{called[self._places.of(index)[0]]}/{key}" for index, key in enumerate(keys)]
            self._ids = Ids(keys, _WHERE, "keys of the tar files")
        return self._ids

    def column(self, name: str) -> Iterable[Any]:
        """One value an example: of `__key__` without a look into the files."""
        if name == KEY:
            return self._keys
        return (self._value(index, name) for index in range(len(self)))

    def place(self, index: int) -> str:
        """Where an example lies: the file, and its key."""
        index = place_of(index, self)
        return f"{self._files.shards[self._places.of(index)[0]].path}, {self._keys[index].as_py()}"

    def _of(self, index: int) -> Any:
        """Start, size and ending of each of an example's files."""
        stop = int(self._first[index + 1]) if index + 1 < len(self._first) else len(self._members)
        return self._members[int(self._first[index]) : stop]

    def _value(self, index: int, name: str) -> Any:
        row = self[index]
        if name not in row:
            raise DataError(f"{self.place(index)} has no file '.{name}'; it has {', '.join(map(repr, row))}")
        return row[name]

    def __repr__(self) -> str:
        return f"TarShards({len(self):,} examples of {called(self._files.shards)})"


@final
class _Index:
    """Where every file of every example lies."""

    def __init__(self) -> None:
        self.keys = list[str]()
        self.first, self.members = array("q"), array("q")
        self.endings: dict[str, int] = {}

    def add(self, shard: Shard) -> None:
        seen, last, here = set[str](), "", set[str]()
        with reading(shard.path), _opened(shard.path) as file:
            for member in file:
                if not member.isfile():
                    continue
                stop = member.offset_data + member.size
                key, ending = _split(member.name)
                if key != last:
                    if key in seen:
                        raise DataError(
                            f"{shard.path}: the files of {key} do not follow each other, or two examples are called "
                            "so; write each example's files together, under a name of its own"
                        )
                    seen.add(key)
                    last, here = key, set()
                    self.keys.append(key)
                    self.first.append(len(self.members) // 3)
                if ending in here:
                    raise DataError(
                        f"{shard.path}: {key} has the file '.{ending}' twice; keep one, or give it another ending"
                    )
                here.add(ending)
                self.members.extend(
                    (member.offset_data, member.size, self.endings.setdefault(ending, len(self.endings)))
                )
                if stop + BLOCK > shard.size:  # at least one block of zeros stands at a tar file's end
                    raise DataError(f"{shard.path} ends within or right after {member.name}; is the file whole?")
                file.members = []  # tarfile keeps every header it has seen  # pyright: ignore[reportAttributeAccessIssue]


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except tarfile.ReadError as cause:
        raise DataError(f"{path} is not a tar file without compression ({first_line(cause)})") from cause


def _split(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    key, dot, ending = file.partition(".")
    if not dot or not key:
        refuse(f"{_WHERE}: the file {name!r} has no ending, by which the field would be called, or no name before it")
    return f"{folder}{slash}{key}", ending


def _common(paths: Sequence[Path]) -> tuple[str, ...]:
    """The folders that all paths lie in."""
    parts = [path.parent.parts for path in paths]
    shared = list[str]()
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return tuple(shared)
