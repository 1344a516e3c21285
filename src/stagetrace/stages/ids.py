"""Stable ids of examples: what an example is called wherever its data set goes, while its index is only its place."""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from numbers import Integral
from typing import Any, cast, final, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stagetrace.errors import DataError, refuse

__all__ = ["Ids", "as_id", "texts_of"]

_AT_ONCE = 10_000


@final
class Ids(Sequence[str]):
    """The id of every example, in the order of the data set: texts, each of one line and each used once.

    They are kept as one Arrow array, so that a million of them take tens of megabytes.

    Args:
        values: the ids; whole numbers stand for their decimal digits.
        where: how messages name them.
        source: where they came from, in words.

    Raises:
        DataError: an id that is no text or whole number, is empty or has a line break, or that two examples have.

    Example:
        >>> ids = Ids(["a", "b", 7])
        >>> list(ids), ids.position("7"), ids[1:]
        (['a', 'b', '7'], 2, Ids(2: 'b', '7'))
        >>> Ids(["a", "b", "a"], "stage 'fit'")
        Traceback (most recent call last):
        stagetrace.errors.DataError: stage 'fit': examples 0 and 2 have the same id 'a'; give ids= that name each ...
    """

    def __init__(self, values: Iterable[Any], where: str = "Ids", source: str = "given") -> None:
        self._array, self.source = texts_of(values, where), source
        _refuse_repeated(self._array, where)

    @staticmethod
    def _of(array: Any, source: str) -> "Ids":
        """Those that have been checked already."""
        made = object.__new__(Ids)
        made._array, made.source = array, source
        return made

    @staticmethod
    def joined(parts: Sequence["Ids"]) -> "Ids":
        """The ids of consecutive parts as one.

        Raises:
            DataError: two examples of different parts have the same id.
        """
        array = pa.concat_arrays([part._array for part in parts])
        _refuse_repeated(array, "Ids")
        return Ids._of(array, parts[0].source)

    @staticmethod
    def read(column: Any) -> "Ids":
        """The ids of a column of strings that was read from a file.

        Raises:
            DataError: as when they are made.
        """
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        array = array.cast(pa.large_string())
        _check_texts(array, 0, "Ids", "an id")
        _refuse_repeated(array, "Ids")
        return Ids._of(array, "read from a file")

    @property
    def array(self) -> Any:
        """The ids as a `pyarrow.LargeStringArray`."""
        return self._array

    def position(self, name: str | int) -> int:
        """The index of the example of this id.

        Raises:
            DescriptionError: there is none.
        """
        found = pc.index(self._array, pa.scalar(as_id(name), pa.large_string())).as_py()
        if found < 0:
            refuse(f"no example has the id {as_id(name)!r}; the first one is {self[0]!r}")
        return found

    def positions_in(self, others: "Ids") -> np.ndarray:
        """For each of these ids its index among `others`, int64 `[n]`; -1 where it is not there."""
        found = pc.index_in(self._array, value_set=others._array)
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)

    def sha256(self) -> str:
        """A digest of all ids in their order."""
        digest = hashlib.sha256()
        for start in range(0, len(self), _AT_ONCE):
            for name in self._array[start : start + _AT_ONCE].to_pylist():
                digest.update(f"{name}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def take(self, indices: Sequence[int]) -> "Ids":
        """The ids of some examples, each index once."""
        return Ids._of(self._array.take(pa.array(np.asarray(indices, dtype=np.int64))), self.source)

    def named(self, indices: Iterable[int]) -> dict[int, str]:
        """The ids of some examples by their index; an index may come several times."""
        wanted = list(dict.fromkeys(indices))
        return dict(zip(wanted, self.take(wanted), strict=True))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Ids": ...
    def __getitem__(self, index: int | slice) -> "str | Ids":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return Ids._of(self._array.slice(start, max(0, stop - start)), self.source)
            return self.take(range(start, stop, step))
        return self._array[range(len(self))[index]].as_py()

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self._array[start : start + _AT_ONCE].to_pylist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ids) and self._array.equals(other._array)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        some = ", ".join(map(repr, self._array[:3].to_pylist()))
        return f"Ids({len(self):,}: {some}{', ...' if len(self) > 3 else ''})"


def as_id(value: Any) -> str | None:
    """An id as a text: itself, or the digits of a whole number; None for anything else.

    Example:
        >>> as_id("a"), as_id(7), as_id(7.0), as_id(True)
        ('a', '7', None, None)
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Integral) and not isinstance(value, (bool, np.bool_)):
        return str(int(value))
    return None


def texts_of(values: Iterable[Any], where: str, what: str = "an id") -> Any:
    """Texts and whole numbers as a `pyarrow.LargeStringArray`, each of one line.

    what: as messages call one of them.

    Raises:
        DataError: values that have no order or are one text; a value of another kind, an empty text, or one with a
            line break.
    """
    if isinstance(values, (Mapping, Set, str, bytes)):
        kind = type(values).__name__
        raise DataError(f"{where}: there must be {what} for each example, in their order, in a sequence, got a {kind}")
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if isinstance(values, pa.Array) and _are_names(values.type) and not values.null_count:
        array = values.cast(pa.large_string())
        _check_texts(array, 0, where, what)
        return array
    found, some, start = list[Any](), list[str](), 0
    for index, value in enumerate(values):
        plain = value.as_py() if isinstance(value, pa.Scalar) else value.item() if hasattr(value, "item") else value
        text = as_id(plain)
        if text is None:
            raise DataError(f"{where}: {what} must be a text or a whole number, got {value!r} for example {index}")
        some.append(text)
        if len(some) == _AT_ONCE:
            found.append(_checked(some, start, where, what))
            some, start = [], index + 1
    found.append(_checked(some, start, where, what))
    return pa.concat_arrays(found)


def _are_names(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def _checked(texts: list[str], start: int, where: str, what: str) -> Any:
    try:
        array = pa.array(texts, pa.large_string())
    except (UnicodeEncodeError, pa.ArrowInvalid) as cause:
        raise DataError(f"{where}: {what} from example {start} on cannot be written in UTF-8 ({cause})") from cause
    _check_texts(array, start, where, what)
    return array


def _check_texts(array: Any, start: int, where: str, what: str) -> None:
    """Refuse an id that is missing, empty, or would not stay on its line of a list."""
    if array.null_count:
        raise DataError(f"{where}: the ids have gaps")
    odd = pc.or_(pc.equal(array, ""), pc.match_substring_regex(array, r"[\n\r\x00]"))
    if pc.any(odd).as_py():
        place = pc.index(odd, True).as_py()
        raise DataError(
            f"{where}: {what} must be a text of one line that is not empty, got {array[place].as_py()!r} for example "
            f"{start + place}"
        )


def _refuse_repeated(array: Any, where: str) -> None:
    if pc.count_distinct(array).as_py() == len(array):
        return
    seen = dict[str, int]()
    for index, name in enumerate(cast("Iterable[str]", (each.as_py() for each in array))):
        if name in seen:
            raise DataError(
                f"{where}: examples {seen[name]} and {index} have the same id {name!r}; give ids= that name each "
                "example, or leave out what is there twice"
            )
        seen[name] = index
