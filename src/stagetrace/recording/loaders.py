"""Loaders whose batches say which examples are in them: the number travels inside the batch, whatever draws it."""

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

from torch.utils.data import DataLoader, IterableDataset, default_collate

from stagetrace.errors import DescriptionError, refuse


@final
class Numbered:
    """A data set that gives each item with its index; everything else is the data set's own."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> tuple[int, Any]:
        return _number(index), self.data[index]

    def __getitems__(self, indices: Sequence[Any]) -> list[tuple[int, Any]]:
        several = getattr(self.data, "__getitems__", None)
        rows = several(list(indices)) if several is not None else [self.data[index] for index in indices]
        return list(zip(map(_number, indices), rows, strict=True))

    def __getattr__(self, name: str) -> Any:
        if name in ("data", "__getitems__") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.data, name)


def _number(index: Any) -> int:
    """An example's number.

    Raises:
        DescriptionError: the sampler gives something else.
    """
    try:
        return operator.index(index)
    except TypeError:
        refuse(
            f"recording.loader: the loader's sampler gives {index!r}, but examples are known by their whole numbers in "
            "the data set; let the sampler give numbers, and the data set find by them what it needs"
        )


@final
class Labelled:
    """A collation that gives the examples' numbers beside the batch: `(ids, batch)`."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[tuple[int, Any]]) -> tuple[tuple[int, ...], Any]:
        return tuple(index for index, _ in rows), self.collate([row for _, row in rows])


def numbered(loader: Any, labelled: Callable[[Callable[[list[Any]], Any]], Any] = Labelled) -> Any:
    """A copy of a PyTorch loader (accelerate's included) that gives `(ids, batch)`; the loader itself is unchanged.

    Sampler, generator and workers are the same, so it draws what the loader would have drawn.

    labelled: how a collation of numbered rows is made of that of the rows.

    Raises:
        DescriptionError: it is no `DataLoader`, streams its data, or is not batched.
    """
    inner = getattr(loader, "base_dataloader", loader)
    if type(loader).__name__ == "DataLoaderDispatcher":
        refuse(
            "recording.loader: accelerate reads the data in one process and hands out parts (dispatch_batches=True); "
            "prepare the loader with dispatch_batches=False, in one process"
        )
    if not isinstance(inner, DataLoader):
        refuse(
            f"recording.loader: got a {type(loader).__name__}; give a torch.utils.data.DataLoader, or say for each "
            "batch which examples are in it: with recording.batch(ids, batch): ..."
        )
    if isinstance(inner.dataset, IterableDataset):
        refuse("recording.loader: the data set is a stream, whose examples have no numbers; make it map-style")
    if inner.batch_sampler is None:
        refuse("recording.loader: the loader is not batched (batch_size=None); give it a batch size")
    if inner.num_workers and inner.persistent_workers and getattr(inner, "_iterator", None) is not None:
        raise DescriptionError("recording.loader: the loader's workers run already; wrap it before its first pass")
    made = _with_numbers(inner, labelled)
    if inner is loader:
        return made
    outer = object.__new__(type(loader))  # copy.copy would make a loader over nothing first
    outer.__dict__.update(loader.__dict__)
    outer.__dict__["base_dataloader"] = made
    for name in ("dataset", "collate_fn"):
        if name in outer.__dict__:
            outer.__dict__[name] = made.__dict__[name]
    return outer


def _with_numbers(loader: DataLoader[Any], labelled: Callable[..., Any]) -> DataLoader[Any]:
    made = copy.copy(loader)
    # torch forbids other values once a loader is made: it cannot know that what draws the indices stays
    made.__dict__["dataset"] = Numbered(loader.dataset)
    made.__dict__["collate_fn"] = labelled(loader.collate_fn or default_collate)
    made.__dict__["_iterator"] = None
    return made


@final
class Watched:
    """What a loop goes over in a loader's place: the same batches, each announced to the recording before it is given.

    begin: is told the examples' numbers and the batch.
    """

    def __init__(self, loader: Any, begin: Callable[[Sequence[int], Any], None]) -> None:
        self._loader, self._numbered, self._begin = loader, numbered(loader), begin

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for ids, batch in self._numbered:
            self._begin(ids, batch)
            yield batch

    def __getattr__(self, name: str) -> Any:
        if name == "_loader" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)
