"""Token files: one array of token ids on disk, cut into rows, in the order in which a training read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from stagetrace.corpora.files import Shard, place_of, reading
from stagetrace.errors import DataError, refuse
from stagetrace.stages.ids import Ids

__all__ = ["Span", "TokenFile"]

_WHERE = "stagetrace.corpora.TokenFile"


@final
@dataclass(frozen=True)
class Span:
    """The tokens `start` to `stop` (not included) of a row, which belong to one document.

    document: its number in the file, from 0.
    """

    document: int
    start: int
    stop: int


@final
class TokenFile:
    """A memory-mapped file of token ids as a map-style data set: example i is the i-th row that was trained on.

    The file holds token ids one after the other and nothing else. It is cut into rows of `length` tokens; what is left
    at its end is not used. The examples are these rows in their order, or in the one that was published with the file:
    `order[i]` is the row of example i. With `batch=`, example i was read at step `i // batch`, and is the
    `i % batch`-th row there; that is its id, "STEP/PLACE". Nothing is read before it is asked for.

    Args:
        path: the file, or an `.npy` array of one dimension.
        dtype: the kind of its numbers, such as "uint16"; an `.npy` file says it itself.
        length: tokens in a row; rows that overlap by one, for the token to be predicted, do so in the file.
        order: row numbers, an array or an `.npy` file; None takes the rows in their order.
        batch: rows in a step of the training.
        documents: where each document begins in the file, in tokens, ascending from 0; an array or an `.npy` file.

    Raises:
        DescriptionError: an argument is of the wrong kind, or does not fit the file.
        DataError: the file cannot be read, or holds less than a row.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.arange(10, dtype=np.uint16).tofile(f"{folder}/tokens.bin")
        ...     rows = TokenFile(f"{folder}/tokens.bin", dtype="uint16", length=3, order=[2, 0, 1], batch=2)
        ...     len(rows), rows[0]["input_ids"], list(rows.ids)
        (3, array([6, 7, 8]), ['0/0', '0/1', '1/0'])
    """

    column_names = ("input_ids",)

    def __init__(
        self,
        path: str | Path,
        *,
        length: int,
        dtype: Any = None,
        order: Sequence[int] | npt.NDArray[Any] | str | Path | None = None,
        batch: int | None = None,
        documents: Sequence[int] | npt.NDArray[Any] | str | Path | None = None,
    ) -> None:
        for name, value in (("length", length), ("batch", batch)):
            if value is not None and (not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1):
                refuse(f"{_WHERE}: {name} must be a whole number of at least 1, got {value!r}")
        if not Path(path).is_file():
            refuse(f"{_WHERE}: there is no file {path}")
        self.length, self.batch = int(length), batch
        self._shard = Shard.of(Path(path))
        self._dtype, self._offset, self.tokens = _layout(self._shard, dtype)
        rows = self.tokens // self.length
        if not rows:
            raise DataError(f"{path} holds {self.tokens:,} tokens, less than a row of length={length:,}")
        self._order = None if order is None else _order(order, rows)
        self._documents = None if documents is None else _starts(documents, self.tokens)
        self._count = rows if self._order is None else len(self._order)
        self._mapped: npt.NDArray[Any] | None = None
        self._ids: Ids | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[np.int64]]:
        start = self.row(index) * self.length
        return {"input_ids": np.array(self._tokens()[start : start + self.length], dtype=np.int64)}

    @property
    def ids(self) -> Ids | None:
        """Step and place of each example, "STEP/PLACE"; None without `batch=`."""
        if self._ids is None and self.batch is not None:
            names = (f"{index // self.batch}/{index % self.batch}" for index in range(len(self)))
            self._ids = Ids(names, _WHERE, "step and place in the batch")
        return self._ids

    def row(self, index: int) -> int:
        """Which row of the file an example is."""
        index = place_of(index, self)
        return index if self._order is None else int(self._order[index])

    def spans(self, index: int) -> list[Span]:
        """The documents that an example holds tokens of, in their order.

        Raises:
            DescriptionError: made without `documents=`.
        """
        starts = self._of_documents("spans")
        begin = self.row(index) * self.length
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        found = list[Span]()
        for document in range(first, len(starts)):
            start = max(int(starts[document]), begin)
            stop = int(starts[document + 1]) if document + 1 < len(starts) else self.tokens
            stop = min(stop, begin + self.length)
            if start >= begin + self.length:
                break
            found += [Span(document, start - begin, stop - begin)] if stop > start else []
        return found

    def documents(self) -> npt.NDArray[np.int64]:
        """The document of each example, `[n_examples]`, for `Scores.grouped`: where each row holds one document alone.

        Raises:
            DescriptionError: made without `documents=`, or a row holds tokens of several documents: its score is a
                number for all of them. Trace with `tokens=` and sum those of each document: `document_of`.
        """
        starts = self._of_documents("documents")
        rows = np.arange(len(self)) if self._order is None else self._order
        first = np.searchsorted(starts, rows * self.length, side="right") - 1
        last = np.searchsorted(starts, (rows + 1) * self.length - 1, side="right") - 1
        mixed = np.flatnonzero(first != last)
        if len(mixed):
            index = int(mixed[0])
            names = ", ".join(str(span.document) for span in self.spans(index))
            refuse(
                f"{_WHERE}: example {index} holds tokens of the documents {names}, and {len(mixed) - 1:,} more "
                "hold several; a row's score is that of all its documents: trace with tokens=, and sum the tokens' by "
                "TokenScores.grouped(data.document_of(tokens.index, tokens.position))"
            )
        return first.astype(np.int64)

    def document_of(self, index: Any, position: Any) -> npt.NDArray[np.int64]:
        """The document of each of some tokens, `[m]`, for `TokenScores.grouped`.

        index, position: of each token its example, and its place in that row; `[m]`.

        Raises:
            DescriptionError: made without `documents=`, or a token that does not exist.
        """
        starts = self._of_documents("document_of")
        index, position = np.asarray(index, dtype=np.int64), np.asarray(position, dtype=np.int64)
        outside = (index < 0) | (index >= len(self)) | (position < 0) | (position >= self.length)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            refuse(f"{_WHERE}.document_of: example {index[first]} has no token {position[first]}")
        rows = index if self._order is None else self._order[index]
        return (np.searchsorted(starts, rows * self.length + position, side="right") - 1).astype(np.int64)

    def place(self, index: int) -> str:
        """Where an example lies: the file, and the tokens in it."""
        start = self.row(index) * self.length
        return f"{self._shard.path}, tokens {start:,} to {start + self.length - 1:,}"

    def _of_documents(self, what: str) -> npt.NDArray[np.int64]:
        if self._documents is None:
            refuse(f"{_WHERE}.{what} needs to know where documents begin; type TokenFile(..., documents=starts)")
        return self._documents

    def _tokens(self) -> npt.NDArray[Any]:
        self._shard.check()
        if self._mapped is None:
            with reading(self._shard.path):
                self._mapped = np.memmap(
                    self._shard.path, dtype=self._dtype, mode="r", offset=self._offset, shape=(self.tokens,)
                )
        return self._mapped

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}

    def __repr__(self) -> str:
        return f"TokenFile({len(self):,} rows of {self.length:,} tokens, {self._shard.path})"


def _kind(dtype: Any) -> np.dtype[Any] | None:
    try:
        return np.dtype(dtype)
    except TypeError:
        return None


def _layout(shard: Shard, dtype: Any) -> tuple[np.dtype[Any], int, int]:
    """The kind of the tokens, the byte where they begin, and their number."""
    if shard.path.suffix == ".npy":
        with reading(shard.path):
            held = np.load(shard.path, mmap_mode="r", allow_pickle=False)
        if held.ndim != 1 or held.dtype.kind not in "iu":
            refuse(f"{_WHERE}: {shard.path} must hold whole numbers in one dimension, got {held.dtype} {held.shape}")
        if dtype is not None and _kind(dtype) != held.dtype:
            refuse(f"{_WHERE}: {shard.path} holds {held.dtype}, and dtype={dtype!r} was given; leave it out")
        return held.dtype, int(held.offset), len(held)
    kind = None if dtype is None else _kind(dtype)
    if kind is None or kind.kind not in "iu":
        refuse(f"{_WHERE}: dtype must be the kind of the file's numbers, such as 'uint16', got {dtype!r}")
    if shard.size % kind.itemsize:
        refuse(f"{_WHERE}: {shard.path} has {shard.size:,} bytes, no whole number of {kind}; is dtype= right?")
    return kind, 0, shard.size // kind.itemsize


def _numbers(given: Any, what: str) -> npt.NDArray[np.int64]:
    if isinstance(given, (str, Path)):
        if not Path(given).is_file():
            refuse(f"{_WHERE}: {what}: there is no file {given}")
        with reading(Path(given)):
            given = np.load(given, mmap_mode="r", allow_pickle=False)
    numbers = np.asarray(given)
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu":
        refuse(f"{_WHERE}: {what} must be whole numbers in one dimension, got {numbers.dtype} {numbers.shape}")
    return numbers.astype(np.int64)


def _order(given: Any, rows: int) -> npt.NDArray[np.int64]:
    order = _numbers(given, "order")
    odd = np.flatnonzero((order < 0) | (order >= rows))
    if len(odd):
        refuse(f"{_WHERE}: order[{odd[0]}] is {order[odd[0]]:,}, but the file has the rows 0 to {rows - 1:,}")
    return order


def _starts(given: Any, tokens: int) -> npt.NDArray[np.int64]:
    starts = _numbers(given, "documents")
    if starts[0] != 0 or np.any(np.diff(starts) < 0) or starts[-1] > tokens:
        refuse(
            f"{_WHERE}: documents must be where each one begins, ascending from 0 to at most {tokens:,}, "
            f"got {starts[0]:,} to {starts[-1]:,}"
        )
    return starts
