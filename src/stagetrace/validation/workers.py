"""Retrainings in parallel, in several processes of one machine."""

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
class Job:
    """Some removals that are trained together with their control."""

    seed: int
    by: float
    removals: tuple[Removal, ...]


@final
@dataclass(frozen=True, eq=False)
class JobResult:
    """losses: `[removals]` or `[removals, queries]`; control: a number or `[queries]`; seconds: of one process."""

    job: Job
    losses: Tensor
    control: Tensor
    seconds: float


def run_jobs(retraining: Retraining, jobs: Sequence[Job], processes: int) -> Iterator[JobResult]:
    """Each job's result as it ends, in any order.

    Several processes are forked, with one thread each, so that data sets, models and functions need not be pickled.
    Where there is an accelerator (a fork does not inherit its threads), or the system cannot fork, the jobs run in this
    process; with CUDA_VISIBLE_DEVICES="" a process on such a machine can fork.

    Raises:
        StagetraceError: what a job raised, after the results of all jobs that ended.
        SolveError: a process was killed.
    """
    if not jobs:
        return
    retraining.prepare()
    processes = min(processes, len(jobs))
    if processes <= 1 or not _can_fork():
        yield from (_do(retraining, job) for job in jobs)
        return
    _Shared.retraining = retraining
    try:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin) as pool:
            yield from _as_they_end(pool, jobs)
    finally:
        _Shared.retraining = None


def default_processes() -> int:
    """As many as there are cores for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Shared:
    """What forked processes inherit."""

    retraining: Retraining | None = None


def _as_they_end(pool: ProcessPoolExecutor, jobs: Iterable[Job]) -> Iterator[JobResult]:
    others = set(multiprocessing.active_children())
    waiting: set[Future[JobResult]] = {pool.submit(_do_shared, job) for job in jobs}
    failed: BaseException | None = None
    try:
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                if (error := future.exception()) is None:
                    yield future.result()
                elif failed is None:  # jobs that run may still succeed; the others are not started
                    failed = error
                    waiting = {future for future in waiting if not future.cancel()}
    except BaseException:  # interrupted, or the generator was closed: nobody waits for what is running
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    if isinstance(failed, BrokenProcessPool):
        raise SolveError(
            "validate: a retraining process was killed (out of memory?); finished retrainings are saved: run "
            "validate again with fewer processes, or with together=1"
        ) from failed
    if failed is not None:
        raise failed


def _do_shared(job: Job) -> JobResult:
    assert _Shared.retraining is not None
    return _do(_Shared.retraining, job)


def _do(retraining: Retraining, job: Job) -> JobResult:
    started, all_runs = time.perf_counter(), [(), *job.removals]
    # a single copy is trained alone (some models cannot be batched), and then its control is too: the same arithmetic
    parts = [[run] for run in all_runs] if len(job.removals) == 1 else [all_runs]
    losses = torch.cat([retraining.losses(part, job.by, job.seed) for part in parts])
    return JobResult(job, losses[1:], losses[0], time.perf_counter() - started)


def _begin() -> None:
    """One thread; on an interrupt it ends at once and silently, whatever the parent process does."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _can_fork() -> bool:
    return not torch.accelerator.is_available() and "fork" in multiprocessing.get_all_start_methods()
