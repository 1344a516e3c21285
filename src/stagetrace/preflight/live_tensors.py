"""The bytes that tensors take while a piece of work runs: counted as they are made and let go."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stagetrace.stages.sparse import parts_of
from stagetrace.stages.watch import Watch

__all__ = ["LiveTensors", "growth"]

T = TypeVar("T")


@final
class LiveTensors(Watch):
    """Counts the storages that operations make, for as long as anything holds them; views cost nothing.

    now, peak: bytes. What was there before does not count, nor what an operation takes for itself while it runs.

    Example:
        >>> with LiveTensors() as seen:
        ...     a = torch.ones(1000).double()
        ...     b = a[10:] + 1
        ...     del a
        >>> seen.now, seen.peak
        (7920, 15920)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, int] = {}

    def seen(self, operation: Any, arguments: tuple[Any, ...], options: dict[str, Any], results: Any) -> None:
        given = {storage._cdata for storage in _storages((arguments, options))}  # pyright: ignore[reportPrivateUsage]
        for storage in _storages(results):
            key = storage._cdata  # pyright: ignore[reportPrivateUsage]
            if key not in given and key not in self._held:
                self._held[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, key)
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int) -> None:
        self.now -= self._held.pop(key, 0)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return [part.untyped_storage() for tensor in tensors for part in parts_of(tensor.detach())]


def growth(work: Callable[[int], object], few: int = 2) -> tuple[int, int]:
    """Of the peak that `work(n)` reaches for n examples: the bytes that do not depend on n, and those an example adds.

    Example:
        >>> growth(lambda n: torch.ones(n, 100).double().sum())
        (0, 1200)
    """
    peaks = list[int]()
    for number in (few, 2 * few):
        with LiveTensors() as seen:
            work(number)
        peaks.append(seen.peak)
    each = max(0, peaks[1] - peaks[0]) // few
    return max(0, peaks[0] - few * each), each
