"""Examples of like size in one batch: a batch is padded to its longest example, and padding costs as much as words.

Nobody knows an example's size before it is read. So a window of many batches is read, its examples are put in the order
of their sizes, and that order is cut into batches: each example is read once, and what is held is a window. Whoever
reads puts its results where the batch's `indices` say. Examples of one size stay in their own order.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from stagetrace.stages.data import Batch, Examples

__all__ = ["by_size", "differ", "read_by_size", "size_of", "sizes_of"]

LOOKED_AT = 8
"""Examples spread through the data set: if they have one size, all are assumed to."""

WINDOW = 32
"""Batches in a window: of lines of text of up to 512 tokens, 6 % are padding then, and 12 % with half of that."""

WINDOW_NUMBERS = 2**24
"""Numbers in a window, at most, by the largest example that was looked at."""


def size_of(example: Any) -> int:
    """Numbers in an example: of its tensors and arrays, lists and fields; characters of its strings.

    Example:
        >>> size_of({"input_ids": [1, 2, 3], "label": 1}), size_of("four")
        (4, 4)
    """
    if isinstance(example, Tensor):
        return example.numel()
    if isinstance(example, (str, bytes)):
        return len(example)
    if isinstance(example, Mapping):
        return sum(map(size_of, example.values()))
    if isinstance(example, (list, tuple)):
        plain = bool(example) and isinstance(example[0], (int, float))
        return len(example) if plain else sum(map(size_of, example))
    size = getattr(example, "size", 1)
    if isinstance(size, tuple):  # an image's width and height
        return math.prod(size)
    return int(size) if isinstance(size, int) else 1


def sizes_of(examples: Examples, indices: Sequence[int]) -> list[int]:
    """The size of each example; each is read once in the life of `examples`.

    Raises:
        DataError: an example cannot be read.
    """
    missing = [index for index in indices if index not in examples.sizes]
    for batch in examples.read(examples.batch_indices(missing), collate=_sizes):
        examples.sizes.update(zip(batch.indices, batch.content, strict=True))
    return [examples.sizes[index] for index in indices]


def differ(examples: Examples) -> bool:
    """Whether examples spread through the data set have different sizes."""
    return not examples.sliceable and len(set(sizes_of(examples, _spread(examples)))) > 1


def by_size(examples: Examples, indices: Sequence[int]) -> tuple[Sequence[int], bool]:
    """The indices in the order of the examples' sizes, and whether those differ.

    Example:
        >>> texts = Examples([[1, 2, 3], [1], [1, 2]], 2, list, 0, "texts")
        >>> by_size(texts, [0, 1, 2])
        ([1, 2, 0], True)
    """
    if not differ(examples):
        return indices, False
    sizes = dict(zip(indices, sizes_of(examples, indices), strict=True))
    return sorted(indices, key=sizes.__getitem__), True


def read_by_size(examples: Examples, indices: Sequence[int] | None = None, size: int | None = None) -> Iterator[Batch]:
    """The examples of `indices` (all), in batches of up to `size` (the batch size) that hold those of like size.

    Where the sizes do not differ these are the batches of `examples.batch_indices(indices, size)`, in that order.

    Raises:
        DataError: as `Examples.read`.
    """
    step = size or examples.batch_size
    if step == 1 or not differ(examples):
        yield from examples.read(examples.batch_indices(indices, step))
        return
    window = step * _batches(examples, len(examples) if indices is None else len(indices), step)
    for read in examples.read(examples.batch_indices(indices, window), collate=_Sorted(examples.collate, step)):
        for places, content in read.content:
            yield Batch([read.indices[place] for place in places], content)


def _batches(examples: Examples, total: int, step: int) -> int:
    """Batches in a window: as many as fit, and not so many that a worker has nothing to read."""
    largest = max(1, *sizes_of(examples, _spread(examples)))
    share = -(-total // max(1, examples.workers))
    return max(1, min(WINDOW, WINDOW_NUMBERS // (largest * step), -(-share // step)))


def _spread(examples: Examples) -> Sequence[int]:
    total = len(examples)
    return range(0, total, max(1, total // LOOKED_AT))


def _sizes(rows: list[Any]) -> list[int]:
    return [size_of(row) for row in rows]


@final
@dataclass(frozen=True)
class _Sorted:
    """Collates a window: a list of batches, each the places of its examples in the window and their content."""

    collate: Callable[[list[Any]], Any]
    size: int

    def __call__(self, rows: list[Any]) -> list[tuple[list[int], Any]]:
        sizes = _sizes(rows)
        order = sorted(range(len(rows)), key=sizes.__getitem__)
        batches = [order[start : start + self.size] for start in range(0, len(rows), self.size)]
        return [(places, self.collate([rows[place] for place in places])) for places in batches]
