"""`ranks`: what one process takes, and what each of two takes that share the work, one thread each.

The jobs are whole traces of the digits' pretraining stage, in processes of their own that `torchrun` starts: one query
by default (which reduces to 4,157 test losses), and 100 queries to a residual of 0.01. A small trace before each is not
counted. The numbers of processes take turns, and the round with the fewest seconds counts.

    processor s    of the process that takes most; what other work runs on the machine hardly matters to it
    wall s         of the first process; with two processes on two cores that other work uses, it says little

Both are taken phase by phase. Waiting for the other process takes wall seconds only.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.report import Report, Row
from benchmarks.setting import small_network
from experiments.networks import ConvNet
from experiments.tasks import Task
from stagetrace import Chain, GaussNewton, Lanczos, Query, Shift, Stage, Trace, trace
from stagetrace.errors import DataError
from stagetrace.objectives import Classification
from stagetrace.parallel import started
from stagetrace.progress import Advance, Silent

RANKS = (1, 2)
ROUNDS = 2
SPEED_UP, APART = 1.9, 1e-6
WHOLE = "in all"
REST = "the rest"

Seconds = dict[str, tuple[float, float]]
"""Processor and wall seconds by phase."""


@final
class Phases:
    """A progress that times each task, and draws nothing."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}

    @contextmanager
    def task(self, what: str, total: int | None, unit: str) -> Generator[Advance]:
        before = time.process_time(), time.perf_counter()
        with Silent().task(what, total, unit) as advance:
            yield advance
        so_far = self.seconds.get(what, (0.0, 0.0))
        after = time.process_time(), time.perf_counter()
        self.seconds[what] = tuple(old + b - a for old, a, b in zip(so_far, before, after, strict=True))  # pyright: ignore[reportArgumentType]


def one_query(chain: Chain, tests: TensorDataset, progress: Phases) -> Trace:
    return trace(chain, Query(tests, batch_size=512), progress=progress)


def many_queries(chain: Chain, tests: TensorDataset, progress: Phases) -> Trace:
    some = TensorDataset(*(tensor[:100] for tensor in tests.tensors))
    solver = Lanczos(0.01, 1e-2, filter=Shift)
    return trace(chain, Query(some, reduction="none"), curvature=GaussNewton(), solver=solver, progress=progress)


JOBS: dict[str, Callable[[Chain, TensorDataset, Phases], Trace]] = {
    "one query, by default": one_query,
    "100 queries, residual 0.01": many_queries,
}


def run(report: Report) -> None:
    """Rounds of one and of two processes, then phase by phase what they took."""
    asked = report.asked
    task = asked.digits()
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.safetensors"
        save_file(_tensors(task, small_network(asked, task)), given)
        found: dict[int, list[Path]] = {ranks: [] for ranks in RANKS}
        for number in range(1 if asked.quick else ROUNDS):
            for ranks in RANKS:
                out = Path(folder) / f"{ranks}-{number}"
                out.mkdir()
                _start(ranks, given, out)
                found[ranks].append(out)
        for job in JOBS:
            _compare(report, job, found)


def _tensors(task: Task, model: nn.Module) -> dict[str, Tensor]:
    given = {f"model.{name}": value for name, value in model.state_dict().items()}
    given |= {"train.pixels": task.train.pixels, "train.labels": task.train.labels}
    given |= {"test.pixels": task.test.pixels, "test.labels": task.test.labels}
    return {name: value.contiguous() for name, value in given.items()}


def _start(ranks: int, given: Path, out: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    words += ["-m", "benchmarks.ranks", str(given), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"ranks: {ranks} processes failed: {done.stderr.strip()[-800:]}")


def _compare(report: Report, job: str, found: Mapping[int, list[Path]]) -> None:
    """The phases of one job, and how far the scores are apart."""
    best = {
        ranks: min((_read(out, job) for out in outs), key=lambda each: each[WHOLE][0]) for ranks, outs in found.items()
    }
    alone, shared = best[1], best[RANKS[-1]]
    rows: list[Row] = []
    for phase in alone:
        (processor, wall), (processors, walls) = alone[phase], shared[phase]
        if processor < 0.01 and phase != WHOLE:
            continue
        rows.append(
            {
                "phase": phase,
                "1: processor s": processor,
                "2: processor s": processors,
                "processor, times": processor / max(processors, 1e-9),
                "1: wall s": wall,
                "2: wall s": walls,
                "wall, times": wall / max(walls, 1e-9),
            }
        )
    report.table(f"{job}: one process and two", rows, job.split(",")[0])
    one, two = (load_file(found[ranks][0] / f"{_file(job)}.safetensors")["scores"].double() for ranks in RANKS)
    apart = float((one - two).abs().max() / one.abs().max())
    report.target(
        f"{job}: processor seconds of the busier of two, over one's", shared[WHOLE][0] / alone[WHOLE][0], 1 / SPEED_UP
    )
    report.target(f"{job}: wall seconds of two over one's", shared[WHOLE][1] / alone[WHOLE][1], 1 / SPEED_UP)
    report.target(f"{job}: largest difference of a score, over the largest score", apart, APART)


def _read(out: Path, job: str) -> Seconds:
    """By phase: processor seconds of the process that took most, wall seconds of the first."""
    every: list[Seconds] = [json.loads(path.read_text())[job] for path in sorted(out.glob("rank-*.json"))]
    found: Seconds = {}
    for phase in every[0]:
        found[phase] = max(each[phase][0] for each in every), every[0][phase][1]
    return found


def _file(job: str) -> str:
    return str(list(JOBS).index(job))


# In each of the processes


def job_of(given: Mapping[str, Tensor], examples: int | None) -> tuple[Chain, TensorDataset]:
    """The stage, of all its examples or some, and the tests."""
    train = TensorDataset(given["train.pixels"][:examples], given["train.labels"][:examples])
    model = ConvNet(given["train.pixels"].shape[1:], int(given["train.labels"].max()) + 1)
    model.load_state_dict({name.removeprefix("model."): value for name, value in given.items() if "model." in name})
    stage = Stage("pretrain", model=model.eval(), objective=Classification(), data=train, batch_size=512)
    return Chain(stage), TensorDataset(given["test.pixels"], given["test.labels"])


def measured(
    job: Callable[[Chain, TensorDataset, Phases], Trace], chain: Chain, tests: TensorDataset
) -> tuple[Seconds, Tensor]:
    phases = Phases()
    before = time.process_time(), time.perf_counter()
    scores = job(chain, tests, phases)["pretrain"].values
    whole = time.process_time() - before[0], time.perf_counter() - before[1]
    named = [sum(each[kind] for each in phases.seconds.values()) for kind in (0, 1)]
    rest = whole[0] - named[0], whole[1] - named[1]
    return {WHOLE: whole, **phases.seconds, REST: rest}, scores


def main(given: Path, out: Path) -> None:
    """One process of a job: what it took, and by the first one the scores."""
    warnings.simplefilter("ignore")
    tensors = load_file(given)
    with started() as world:
        found: dict[str, Any] = {}
        for name, job in JOBS.items():
            measured(job, *job_of(tensors, 64))
            found[name], scores = measured(job, *job_of(tensors, None))
            if world.is_first:
                save_file({"scores": scores.contiguous()}, out / f"{_file(name)}.safetensors")
        (out / f"rank-{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
