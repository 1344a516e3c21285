"""Several processes in a moment: forks of this one, which has everything imported, joined by gloo."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from stagetrace.parallel import raised_by


@dataclass(frozen=True)
class Outcome:
    """What a process gave back, or what it raised: as text, and by whom first. exit: its status, if it gave neither."""

    value: Any = None
    error: str | None = None
    kind: str | None = None
    raised_by: int | None = None
    exit: int | None = None


def forked(ranks: int, work: Callable[[int], Any], seconds: float = 240.0) -> list[Outcome]:
    """Run `work(rank)` in so many processes that form one group; a process that hangs fails the test."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
        started = [
            context.Process(target=_run, args=(rank, ranks, f"{folder}/meet", work, pipes[rank][1]))
            for rank in range(ranks)
        ]
        for process in started:
            process.start()
        for _, sender in pipes:
            sender.close()
        try:
            return [_outcome(process, receiver, seconds) for process, (receiver, _) in zip(started, pipes, strict=True)]
        finally:
            for process in started:
                process.kill()
                process.join()


def _outcome(process: Any, receiver: Any, seconds: float) -> Outcome:
    if not receiver.poll(seconds):
        raise AssertionError("a process hangs")
    try:
        return pickle.loads(receiver.recv_bytes())
    except EOFError:  # it died
        process.join()
        return Outcome(exit=process.exitcode)


def _run(rank: int, ranks: int, place: str, work: Callable[[int], Any], sender: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=ranks)
    try:
        found = Outcome(work(rank))
    except BaseException as error:
        if os.environ.get("STAGETRACE_TEST_TRACEBACKS"):
            traceback.print_exc()
        found = Outcome(error=str(error), kind=type(error).__name__, raised_by=raised_by(error))
    sender.send_bytes(pickle.dumps(found))  # `send` would put tensors into memory that goes with this process
    sender.close()
    os._exit(0)  # without what pytest does at its end
