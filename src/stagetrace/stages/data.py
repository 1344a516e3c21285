"""Reading a data set in the library's own order, so that an example's id is its index."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from stagetrace.errors import DataError, DescriptionError, StagetraceError, first_line, refuse
from stagetrace.stages.mistaken import refuse_no_data_set
from stagetrace.stages.rows import PlainCollation, UnfitRowError, complaint, has_text, misfit, name_of, unstackable

WORKERS_PAY = 1.0
"""Seconds of reading in one process from which workers are started: to start them takes some tenths of a second."""

Collate = Callable[[list[Any]], Any]


@final
@dataclass(frozen=True)
class Batch:
    """Some examples: their indices in the data set and their collated content."""

    indices: Sequence[int]
    content: Any

    def __len__(self) -> int:
        return len(self.indices)


@final
class Examples:
    """A map-style data set with a fixed order, batch size and collation.

    Args:
        data: anything with `__len__` and `__getitem__`: a PyTorch or Hugging Face data set, a list, a tensor.
        batch_size: examples per batch; the last batch may be smaller.
        collate: list of examples -> batch; the default is PyTorch's.
        workers: processes that load data, started where a pass over it takes more than a second; 0 loads in this one.
        where: how messages name the data set, e.g. `stage 'pretrain'`.

    Raises:
        DescriptionError: a loader, an iterable or something without length or indices was given.
        DataError: the data set is empty.
    """

    def __init__(
        self, data: Any, batch_size: int, collate: Callable[[list[Any]], Any] | None, workers: int, where: str
    ) -> None:
        refuse_no_data_set(data, collate, where)
        _check_map_style(data, where)
        self.data, self.batch_size, self.workers, self.where = data, batch_size, workers, where
        self.collate = collate or PlainCollation()
        self.pace = 0.0
        """Seconds that reading an example takes in this process, as far as known."""
        self.held: dict[str, int] = {}
        """Examples that memory held at once where it ran out for more, by what was computed of them."""
        self.sizes: dict[int, int] = {}
        """Of each example whose size has been asked for; see `sizes.py`."""
        # a subclass may do anything to an item, so slices are for the class itself
        self.sliceable = type(data) is TensorDataset and collate is None and _are_strided(data)

    def __len__(self) -> int:
        return len(self.data)

    def batch_indices(self, indices: Sequence[int] | None = None, size: int | None = None) -> list[Sequence[int]]:
        """Indices (all, in order) cut into batches of `size` (the batch size); the last may be smaller."""
        chosen = range(len(self)) if indices is None else indices
        step = size or self.batch_size
        return [chosen[start : start + step] for start in range(0, len(chosen), step)]

    def read(self, plan: Iterable[Sequence[int]], collate: Collate | None = None) -> Iterator[Batch]:
        """The batches of a plan, in order, on the CPU; collated by `collate`, where it is given, in place of their own.

        Raises:
            DataError: an example cannot be read, or a list of examples cannot be collated.
        """
        batches = list(plan)
        if self.sliceable and collate is None:
            contents = (tuple(t.clone() for t in self.data[positions(indices)]) for indices in batches)
        else:
            contents = _Contents(self, batches, collate or self.collate)
        for indices in batches:
            try:
                content = next(contents)
            except StopIteration as cause:
                raise DataError(
                    f"{self.where}: the data set ended early, at example {indices[0]} of {len(self)}"
                ) from cause
            except Exception as cause:
                if isinstance(cause, StagetraceError) and not self.workers:
                    raise  # it says where itself; from a worker it comes with the worker's traceback in its text
                raise self._error_of(indices, cause) from cause
            yield Batch(indices, content)

    def loaded(self, batches: Sequence[Sequence[int]], workers: int, collate: Collate) -> Iterator[Any]:
        """The content of each batch, collated."""
        return iter(
            DataLoader(
                self.data,
                batch_sampler=_Lists(batches),
                collate_fn=collate,
                num_workers=workers,
                generator=torch.Generator(),  # else it would draw from the user's random state
            )  # pyright: ignore[reportArgumentType]
        )

    def _error_of(self, indices: Sequence[int], cause: Exception) -> StagetraceError:
        """The error that names which example of a batch failed, found one by one."""
        rows = list[Any]()
        for index in indices:
            try:
                rows.append(self._row(index))
            except StagetraceError as error:
                return error
            except Exception as error:
                return self._unreadable(index, error)
        if isinstance(self.collate, PlainCollation):
            for index, row in zip(indices, rows, strict=True):
                message = complaint(row) or misfit(rows[0], row) or unstackable(rows[0], row)
                if message:
                    return DataError(f"{self.where}, example {index}: {message}")
        where = f"{self.where}: examples {indices[0]}..{indices[-1]} cannot be read or collated"
        what = first_line(cause) if not isinstance(cause, UnfitRowError) else str(cause)
        remedy = "fix the data set or give collate="
        if has_text(rows[0]):
            remedy = (
                f"{name_of(self.collate)} got rows of texts with the keys {list(rows[0])}: tokenise them, or describe "
                "the stage by stagetrace.hf.stage(...) and the query by stagetrace.hf.query(data, stage=...)"
            )
        elif not isinstance(self.collate, PlainCollation):
            odd = [(i, message) for i, row in zip(indices, rows, strict=True) if (message := unstackable(rows[0], row))]
            seen = f"in example {odd[0][0]} {odd[0][1]}; " if odd else ""
            remedy = f"{seen}fix the data set or give collate= another than {name_of(self.collate)}"
        return DataError(f"{where} ({type(cause).__name__}: {what}); {remedy}")

    def _row(self, index: int) -> Any:
        """An example as PyTorch's loader fetches it."""
        fetch = getattr(self.data, "__getitems__", None)
        return fetch([index])[0] if fetch else self.data[index]

    def _unreadable(self, index: int, error: Exception) -> DataError:
        if isinstance(error, IndexError):
            return DataError(
                f"{self.where}: the data set says that its length is {len(self)}, but example {index} cannot be read "
                f"(IndexError: {first_line(error)}); correct its __len__"
            )
        return DataError(
            f"{self.where}: example {index} cannot be read ({type(error).__name__}: {first_line(error)}); "
            "fix the data set"
        )


def positions(indices: Sequence[int]) -> slice | list[int]:
    """What picks the indices: a slice where they are consecutive, for a view instead of a copy."""
    first, stop = indices[0], indices[0] + len(indices)
    return slice(first, stop) if list(indices) == list(range(first, stop)) else list(indices)


@final
class _Lists(Sequence[list[int]]):
    """Batches as lists, which some data sets insist on, made when they are asked for: a range takes no memory."""

    def __init__(self, batches: Sequence[Sequence[int]]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: Any) -> Any:
        return list(self._batches[place])


@final
class _Contents:
    """The batches' contents, in order: read by this process, and by workers as soon as that pays.

    Each read starts its own workers, which would slow down every pass over little data. The contents do not depend on
    which process reads them.
    """

    def __init__(self, examples: Examples, batches: Sequence[Sequence[int]], collate: Collate) -> None:
        self._examples, self._batches, self._collate, self._done = examples, batches, collate, 0
        self._left = sum(map(len, batches))
        self._helped = False
        self._source: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        examples, batches = self._examples, self._batches
        helps = examples.workers > 0 and examples.pace * self._left > WORKERS_PAY
        if self._done == 0 or (helps and not self._helped):
            self._source = examples.loaded(batches[self._done :], examples.workers if helps else 0, self._collate)
            self._helped = helps
        started = time.perf_counter()
        content = next(self._source)
        if not self._helped:
            examples.pace = (time.perf_counter() - started) / len(batches[self._done])
        self._left -= len(batches[self._done])
        self._done += 1
        return content


def _check_map_style(data: Any, where: str) -> None:
    if isinstance(data, DataLoader):
        refuse(
            f"{where}: data is a DataLoader, with an order of its own; pass the data set (data=loader.dataset, "
            "collate=loader.collate_fn), so that an example's id is its index"
        )
    if isinstance(data, IterableDataset) or type(data).__name__ == "IterableDataset":
        refuse(
            f"{where}: data is a stream ({type(data).__name__}), which has no length and no indices; type "
            "stagetrace.corpora.Stream(data, length=n, spill='FOLDER'), which keeps the n rows that were trained on"
        )
    if isinstance(data, Set) or not (hasattr(type(data), "__len__") and hasattr(type(data), "__getitem__")):
        refuse(f"{where}: data must be a map-style data set or a list (length and indices), got {type(data).__name__}")
    if isinstance(data, (Mapping, str, bytes)):
        refuse(f"{where}: data must be indexed by 0, 1, 2, ...; got {type(data).__name__}; pass a list of examples")
    if type(data).__module__.partition(".")[0] == "pandas":
        refuse(
            f"{where}: data is a pandas {type(data).__name__}, which is indexed by labels; pass "
            "datasets.Dataset.from_pandas(data), or data.to_dict('records'), or data.tolist() of a Series"
        )
    if type(data) is tuple and data and all(isinstance(column, (Tensor, np.ndarray)) for column in data):
        refuse(
            f"{where}: data is a tuple of {len(data)} tensors; if these are columns pass TensorDataset(*data), if each "
            "is an example pass list(data)"
        )
    try:
        length = len(data)
    except Exception as cause:
        raise DescriptionError(
            f"{where}: data of class {type(data).__name__} has no length ({type(cause).__name__}: "
            f"{first_line(cause)}); pass a map-style data set or a list of examples"
        ) from cause
    if length == 0:
        raise DataError(f"{where}: the data set is empty; it needs at least one example")


def _are_strided(data: TensorDataset) -> bool:
    return all(tensor.layout is torch.strided and not tensor.is_nested for tensor in data.tensors)
