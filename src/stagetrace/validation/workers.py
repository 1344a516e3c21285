"""Retrainings shared among processes of one machine."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import SolveError
from stagetrace.validation.removals import Removal
from stagetrace.validation.retrain import Retraining


@final
@dataclass(frozen=True)
class Work:
    """Some removals that are trained together, with their control, in one run."""

    seed: int
    by: float
    removals: tuple[Removal, ...]


@final
@dataclass(frozen=True, eq=False)
class Done:
    """losses: `[removals]` or `[removals, queries]`; control: a number or `[queries]`; seconds: of one process."""

    work: Work
    losses: Tensor
    control: Tensor
    seconds: float


def carried_out(retraining: Retraining, works: Sequence[Work], processes: int) -> Iterator[Done]:
    """Each piece of work as it ends, in any order.

    Several processes are forked, with one thread each, so that data sets, models and functions need not be pickled.
    Where there is an accelerator (a fork does not inherit its threads), or the system cannot fork, the work is done in
    this process; on an accelerator's machine a process that must not see it (CUDA_VISIBLE_DEVICES="") can fork.

    Raises:
        StagetraceError: what a piece of work raised, after all pieces that ended.
        SolveError: a process was killed.
    """
    if not works:
        return
    retraining.prepare()
    processes = min(processes, len(works))
    if processes <= 1 or not _can_fork():
        yield from (_do(retraining, work) for work in works)
        return
    _Shared.retraining = retraining
    try:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin) as pool:
            yield from _as_they_end(pool, works)
    finally:
        _Shared.retraining = None


def default_processes() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Shared:
    """What a forked process finds in its memory."""

    retraining: Retraining | None = None


def _as_they_end(pool: ProcessPoolExecutor, works: Iterable[Work]) -> Iterator[Done]:
    others = set(multiprocessing.active_children())
    waiting: set[Future[Done]] = {pool.submit(_do_shared, work) for work in works}
    failed: BaseException | None = None
    try:
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                if (error := future.exception()) is None:
                    yield future.result()
                elif failed is None:  # what has begun may still end well; what has not is not done
                    failed = error
                    waiting = {future for future in waiting if not future.cancel()}
    except BaseException:  # interrupted, or the reader went away: nobody waits for what is running
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    if isinstance(failed, BrokenProcessPool):
        raise SolveError(
            "validate: a process that trained again was killed (out of memory?); what was finished is kept: run it "
            "again with fewer processes, or together=1"
        ) from failed
    if failed is not None:
        raise failed


def _do_shared(work: Work) -> Done:
    assert _Shared.retraining is not None
    return _do(_Shared.retraining, work)


def _do(retraining: Retraining, work: Work) -> Done:
    started, all_runs = time.perf_counter(), [(), *work.removals]
    # one copy is trained alone, for models that cannot be batched, and so is its control: the same arithmetic
    parts = [[run] for run in all_runs] if len(work.removals) == 1 else [all_runs]
    losses = torch.cat([retraining.losses(part, work.by, work.seed) for part in parts])
    return Done(work, losses[1:], losses[0], time.perf_counter() - started)


def _begin() -> None:
    """One thread, and an end at once and silently when interrupted, whatever this process does then."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _can_fork() -> bool:
    return not torch.accelerator.is_available() and "fork" in multiprocessing.get_all_start_methods()
