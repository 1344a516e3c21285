"""The only module that knows of several processes.

Examples are sharded over ranks, parameter vectors are replicated on every rank. The library asks a `World` which
examples are mine, for the sum of what the ranks computed, and for what the first rank read from disk. With one process
each of these does nothing. Launch: `torchrun --nproc-per-node N -m stagetrace score ...`.

What a process does by itself between two such questions stands in a `together` block: an error that one of them raises
there is raised by all, so that none is left waiting. The same exchange looks whether all are at the same place with the
same numbers: processes that took different turns would add up things that do not belong together, and nobody would see.
"""

import math
import os
import pickle
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from stagetrace.errors import ProcessError, StagetraceError, first_line

__all__ = ["PATIENCE", "World", "backends", "is_sharded", "raised_by", "started", "world"]

T = TypeVar("T")

PATIENCE = timedelta(hours=24)
"""How long a process waits for a slower one; one that has died is noticed at once, by its closed connection."""

_RANK = "_stagetrace_rank"
"""The attribute of an error that holds which process raised it."""


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

    def largest_shard(self, items: int) -> int:
        """How many of so many items the rank with most of them has, at least 1."""
        return max(1, -(-items // self.size))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, the same bits on each; in place where there are several."""
        if self.size > 1:
            with self._reaching_all():
                dist.all_reduce(tensor)
        return tensor

    def gather(self, item: Any) -> list[Any]:
        """Every rank's item, in rank order, on every rank. Of tensors `joined` is for those on a device."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        with self._reaching_all():
            dist.all_gather_object(items, item)
        return items

    def joined(self, tensor: Tensor) -> Tensor:
        """Every rank's rows `[n_rank, ...]` below one another in rank order, on every rank and on its own device.

        Each rank sends its own straight into the others' result: nothing is held twice.
        """
        if self.size == 1:
            return tensor
        lengths: list[int] = self.gather(len(tensor))
        whole = tensor.new_empty(sum(lengths), *tensor.shape[1:])
        start = 0
        for rank, length in enumerate(lengths):
            rows = whole[start : start + length]
            if rank == self.rank:
                rows.copy_(tensor)
            if rows.numel():
                self.from_rank(rank, rows)
            start += length
        return whole

    def from_rank(self, rank: int, tensor: Tensor) -> Tensor:
        """A rank's tensor in the place of every other's, which has the same shape and is contiguous."""
        if self.size > 1:
            with self._reaching_all():
                dist.broadcast(tensor, src=rank)
        return tensor

    def share(self, item: T) -> T:
        """The first rank's item, on every rank."""
        return item if self.size == 1 else self._shared(item, 0)

    def first(self, ask: Callable[[], T], what: str) -> T:
        """What the first rank alone finds, on every rank; so is an error that it raises."""
        answer: Any = None
        with self.together(what):
            if self.is_first:
                answer = ask()
        return self.share(answer)

    @contextmanager
    def together(self, what: str, witness: Tensor | None = None) -> Generator[None]:
        """Work that a rank does by itself, without a question to the others: what one raises, all raise.

        what: which work it is; all ranks must be at the same. witness: what must be the same on all, such as the
        vectors that each multiplies; its sum is compared.

        Raises:
            ProcessError: another rank failed by no error of ours, is at other work, or has another number.
        """
        trouble: Exception | None = None
        try:
            yield
        except ProcessError:
            raise  # the others are no longer there to be told
        except Exception as cause:
            if self.size == 1:
                raise
            trouble = cause
        if self.size > 1:
            self._agree(what, witness, trouble)

    def _agree(self, what: str, seen: Tensor | None, trouble: Exception | None) -> None:
        """Raise what the lowest rank that is in trouble raised; all do, or none."""
        place, total = float(zlib.crc32(what.encode())), 0.0 if seen is None else float(seen.sum(dtype=torch.float64))
        witness = total if math.isfinite(total) else math.inf
        worst = 0.0 if trouble is None else float(self.size - self.rank)
        told = torch.tensor([worst, place, -place, witness, -witness], dtype=torch.float64)
        with self._reaching_all():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        worst, place, lowest_place, witness, lowest = told.tolist()
        if worst:
            who = self.size - int(worst)
            said = self._shared(_packed(trouble), who)
            if trouble is not None and who == self.rank:
                raise _marked(trouble, who)
            _raise(said, who, trouble)
        if place != -lowest_place or witness != -lowest:
            at = "other work" if place != -lowest_place else f"{what} with other numbers"
            raise ProcessError(
                f"process {self.rank} of {self.size} is at {what}, and another one at {at}: they came to different "
                "results, though all solve the same systems. Start all of them on the same kind of processor or GPU, "
                "with the same versions and the same OMP_NUM_THREADS"
            )

    def _shared(self, item: Any, source: int) -> Any:
        box = [item]
        with self._reaching_all():
            dist.broadcast_object_list(box, src=source)
        return box[0]

    @contextmanager
    def _reaching_all(self) -> Generator[None]:
        """A question to the other ranks.

        Raises:
            ProcessError: one of them is gone.
        """
        try:
            yield
        except (RuntimeError, ValueError) as cause:
            raise ProcessError(
                f"process {self.rank} of {self.size} stops, since another one no longer answers (it was killed, lost "
                f"its machine, or failed and says why itself; {first_line(cause)}). Start the job again, on any number "
                "of processes: with the same folder (--out, out=) it goes on where it was"
            ) from cause


def world() -> World:
    """The world this process lives in: of one, unless a process group has been started."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def backends() -> str:
    """What the process group sends tensors by, device by device."""
    return str(dist.get_backend_config())


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one process's view of a tensor that lies in pieces on several (FSDP2, tensor parallelism)."""
    module = sys.modules.get("torch.distributed.tensor")  # importing it takes a second; who has such a tensor has it
    return module is not None and isinstance(tensor, module.DTensor)


def raised_by(error: BaseException) -> int | None:
    """Which process raised an error that all of them then raised; None where it is this one's own."""
    return getattr(error, _RANK, None)


@contextmanager
def started() -> Generator[World]:
    """Join the process group that `torchrun` describes in the environment; without one, do nothing.

    One GPU per local rank and NCCL for what lies on it where CUDA is there; gloo for what lies on the CPU.

    Raises:
        ProcessError: this machine has fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield world()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_own_gpu())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    before = _on_termination(_stopped)
    try:
        yield world()
    finally:
        _on_termination(before)
        dist.destroy_process_group()


def _own_gpu() -> int:
    """The number of this process's GPU."""
    rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= gpus:
        raise ProcessError(
            f"process {rank} of this machine has no GPU of its own: PyTorch sees {gpus}. Start at most {gpus} here "
            f"(torchrun --nproc-per-node {gpus}), or all of them on the CPU (CUDA_VISIBLE_DEVICES= torchrun ...)"
        )
    return rank


def _stopped(number: int, frame: Any) -> NoReturn:
    """`torchrun` ends the others where one has failed: they say so and let go of the folder."""
    del number, frame
    raise ProcessError(
        f"process {world().rank} of {world().size} was told to stop (SIGTERM), as torchrun does once another process "
        "has failed: its message says why. Start the job again, on any number of processes: with the same folder "
        "(--out, out=) it goes on where it was"
    )


def _on_termination(handler: Any) -> Any:
    """Set what SIGTERM does, and give what it did before; in the main thread alone, which is the only one that may."""
    if threading.current_thread() is not threading.main_thread():
        return signal.SIG_DFL
    return signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)


def _packed(error: Exception | None) -> bytes | str | None:
    """An error as it can be sent: one of ours whole, of another what it says."""
    if error is None:
        return None
    if isinstance(error, StagetraceError):
        try:
            return pickle.dumps(error)
        except Exception:
            pass
    return f"{type(error).__name__}: {first_line(error)}"


def _raise(said: bytes | str, who: int, beside: Exception | None) -> NoReturn:
    """Raise what another process said."""
    if isinstance(said, bytes):
        raise _marked(pickle.loads(said), who) from beside
    raise _marked(ProcessError(f"process {who} failed ({said})"), who) from beside


def _marked(error: Exception, who: int) -> Exception:
    setattr(error, _RANK, who)
    return error
