"""Reading a data set in the library's own order, so that an example's id is its index."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from stagetrace.errors import DataError, DescriptionError, refuse
from stagetrace.stages.mistaken import refuse_no_data_set


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
        workers: processes that load data; 0 loads in this one.
        where: how messages name the data set, e.g. `stage 'pretrain'`.

    Raises:
        DescriptionError: a loader, an iterable or something without length or indices was given.
        DataError: the data set is empty.
    """

    def __init__(
        self, data: Any, batch_size: int, collate: Callable[[list[Any]], Any] | None, workers: int, where: str
    ) -> None:
        refuse_no_data_set(data, collate, where)
        if isinstance(data, DataLoader):
            refuse(
                f"{where}: data is a DataLoader, with an order of its own; pass the data set (data=loader.dataset, "
                "collate=loader.collate_fn), so that an example's id is its index"
            )
        if isinstance(data, IterableDataset) or not (
            hasattr(type(data), "__len__") and hasattr(type(data), "__getitem__")
        ):
            refuse(
                f"{where}: data must be a map-style data set or a list (length and indices), got {type(data).__name__}"
            )
        if isinstance(data, (Mapping, str)):
            refuse(f"{where}: data must be indexed by 0, 1, 2, ...; got {type(data).__name__}; pass a list of examples")
        if len(data) == 0:
            raise DataError(f"{where}: the data set is empty; it needs at least one example")
        self.data, self.batch_size, self.workers, self.where = data, batch_size, workers, where
        self.collate = collate or default_collate
        self._sliceable = isinstance(data, TensorDataset) and collate is None

    def __len__(self) -> int:
        return len(self.data)

    def plan(self, indices: Sequence[int] | None = None, size: int | None = None) -> list[Sequence[int]]:
        """Indices (all, in order) cut into batches of `size` (the batch size); the last may be smaller."""
        chosen = range(len(self)) if indices is None else indices
        step = size or self.batch_size
        return [chosen[start : start + step] for start in range(0, len(chosen), step)]

    def read(self, plan: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """The batches of a plan, in order, on the CPU.

        Raises:
            DataError: an example cannot be read, or a list of examples cannot be collated.
        """
        batches = [list(indices) for indices in plan]
        if self._sliceable:
            contents = (self.data[self._selector(indices)] for indices in batches)
        else:
            contents = iter(
                DataLoader(
                    self.data,
                    batch_sampler=batches,
                    collate_fn=self.collate,
                    num_workers=self.workers,
                    generator=torch.Generator(),  # else it would draw from the user's random state
                )  # pyright: ignore[reportArgumentType]
            )
        for indices in batches:
            try:
                content = next(contents)
            except StopIteration as cause:
                raise DataError(
                    f"{self.where}: the data set ended early, at example {indices[0]} of {len(self)}"
                ) from cause
            except DescriptionError:
                raise
            except Exception as cause:
                raise DataError(
                    f"{self.where}: examples {indices[0]}..{indices[-1]} cannot be read or collated "
                    f"({type(cause).__name__}: {_first_line(cause)}); fix the data set or give collate="
                ) from cause
            yield Batch(indices, content)

    @staticmethod
    def _selector(indices: list[int]) -> slice | list[int]:
        """A slice where the indices are consecutive: a view instead of a copy."""
        first, stop = indices[0], indices[0] + len(indices)
        return slice(first, stop) if indices == list(range(first, stop)) else indices


def place(content: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The batch on the model's device, its floating-point tensors in the model's dtype."""
    if isinstance(content, Tensor):
        return content.to(device, dtype if content.is_floating_point() else None, non_blocking=True)
    if isinstance(content, Mapping):
        return {key: place(value, dtype, device) for key, value in content.items()}
    if isinstance(content, tuple) and type(content) is not tuple:
        return type(content)(*(place(value, dtype, device) for value in content))
    if isinstance(content, (tuple, list)):
        return type(content)(place(value, dtype, device) for value in content)
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
