"""The only module that knows of several processes.

Examples are sharded over ranks, parameter vectors are replicated on every rank. The library asks a `World`
three things: which examples are mine, the sum of what the ranks computed, and what the first rank read from
disk. With one process each of these does nothing. Launch: `torchrun --nproc-per-node N -m stagetrace score ...`.
"""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@final
@dataclass(frozen=True)
class World:
    """The processes that share one job: this one's rank and their number."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's contiguous share of `items`; shares differ by at most one item."""
        n, first = divmod(len(items), self.size)
        start = self.rank * n + min(self.rank, first)
        return items[start : start + n + (self.rank < first)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, the same bits on each; in place where there are several."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, item: Any) -> list[Any]:
        """Every rank's item, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def share(self, item: T) -> T:
        """The first rank's item, on every rank."""
        if self.size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def world() -> World:
    """The world this process lives in: of one, unless a process group has been started."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def started() -> Generator[World]:
    """Join the process group that `torchrun` describes in the environment; without one, do nothing.

    One GPU per local rank and NCCL for what lies on it where CUDA is there; gloo for what lies on the CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield world()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield world()
    finally:
        dist.destroy_process_group()
