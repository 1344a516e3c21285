"""`memory`: seconds and peak memory of scoring n, 2n, 5n and 10n examples, each in a process of its own.

The work, counted: scoring reads each example once and holds one batch, its tangent and one layer's activations at a
time; a score is 8 bytes. Ten times the examples therefore cost ten times the seconds, and the peak grows by 16 bytes an
example (the parts, and the scores they are joined to), which is 3 MB between 20,000 and 200,000 examples.

The examples are real digits, a fixed pool of them given out over and over, one by one: what grows is the number of
examples and not the data set in memory. Seconds and memory are those of `Scorer.run`, after a warm-up.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.report import Report, Row
from benchmarks.setting import risk_of
from experiments.networks import ConvNet
from stagetrace.progress import Silent
from stagetrace.results.parts import join
from stagetrace.tracing.score import Scorer

POOL = 2000
FACTORS = (1, 2, 5, 10)


@final
class Repeated:
    """`examples` examples out of a pool: example i is number i modulo the pool's size."""

    def __init__(self, pixels: Tensor, labels: Tensor, examples: int) -> None:
        self._pool, self._examples = list(zip(pixels, labels, strict=True)), examples

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._pool[index % len(self._pool)]


def run(report: Report) -> None:
    """Rounds of n, 2n, 5n, 10n; medians of the rounds."""
    n = 500 if report.asked.quick else 20_000
    task = report.asked.digits()
    rounds = 1 if report.asked.quick else 3
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.safetensors"
        save_file({"pixels": task.train.pixels[:POOL].cpu(), "labels": task.train.labels[:POOL].cpu()}, pool)
        found = [{factor: _apart(pool, factor * n) for factor in FACTORS} for _ in range(rounds)]
    table: list[Row] = []
    for factor in FACTORS:
        taken = [rows[factor] for rows in found]
        seconds = median(row["seconds"] for row in taken)
        table.append(
            {
                "examples": factor * n,
                "seconds": seconds,
                "least s": min(row["seconds"] for row in taken),
                "time over n": median(rows[factor]["seconds"] / rows[1]["seconds"] for rows in found),
                "us an example": 1e6 * seconds / (factor * n),
                "peak MB": median(row["peak_bytes"] for row in taken) / 1e6,
                "grown by MB": median(row["grown_bytes"] for row in taken) / 1e6,
            }
        )
    report.table("Scoring more and more examples, each number in a fresh process", table, "memory")
    least = table[-1]["least s"] / table[0]["least s"]
    report.fields["time_ratio_by_least"] = least
    report.target(
        "deviation from 10 times the time for 10 times the examples", abs(table[-1]["time over n"] / 10 - 1), 0.1
    )
    grown = (table[-1]["peak MB"] - table[0]["peak MB"]) / table[0]["peak MB"]
    report.target("growth of peak memory from n to 10 n, as a share", grown, 0.05)


def _apart(pool: Path, examples: int) -> dict[str, Any]:
    """Score in a fresh process with as many threads as this one."""
    command = [sys.executable, "-m", "benchmarks.memory", str(pool), str(examples), str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def _score(pool: Path, examples: int, threads: int) -> dict[str, Any]:
    """What the fresh process does."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tensors = load_file(pool)
    pixels, labels = tensors["pixels"], tensors["labels"]
    model = ConvNet(pixels.shape[1:], classes=int(labels.max()) + 1).eval()

    def scored(count: int) -> None:
        risk = risk_of(model, Repeated(pixels, labels, count))
        adjoint = torch.randn(risk.trained.size, 1, generator=torch.Generator().manual_seed(0))
        scorer = Scorer.of(risk, adjoint, parts=False, rows=None)
        join("pretrain", scorer.run(lambda number: None, lambda number, part: None, Silent()))

    scored(2048)
    before = peak()
    started = time.perf_counter()
    scored(examples)
    seconds = time.perf_counter() - started
    return {"examples": examples, "seconds": seconds, "peak_bytes": peak(), "grown_bytes": peak() - before}


def peak() -> int:
    """The most bytes that this process has held at once since it was started.

    Linux hands `ru_maxrss` down from the process that started this one; its own peak stands in `/proc`.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident(device: torch.device) -> int:
    """Bytes held now: on a GPU what tensors hold, else the process's resident memory once free memory went back.

    Without `/proc` there is only the peak, and what a piece of work keeps is then seen only where it raises that.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
        trim(0)
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else peak()


if __name__ == "__main__":
    print(json.dumps(_score(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
