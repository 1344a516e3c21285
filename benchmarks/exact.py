"""`exact`: what the derivative through a recorded training costs, in trainings and in gradients a step.

The work, counted in gradients of a step's batch (forward and backward). A training takes 1 a step. Backwards a step
takes its gradient with the graph (1) and one backward pass through that, which costs what forward and backward did
and as much again for what the backward pass was made of (2). Where a state was kept before each step, that is all: 3.
Between kept states each step is replayed first: 4 in all, one less for each block. Where the points between two kept
states do not fit into `Unrolled(memory=...)`, steps are replayed more than once; how often is counted as it happens. A
further query is one more pass through the same graph: 2.

Seconds are the processor's, of all threads. Training and queries take turns, so that each quotient is of neighbours.
Peaks are of processes of their own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import trainings
from benchmarks.memory import peak
from benchmarks.report import Report, Row
from benchmarks.timing import Times, in_turn
from benchmarks.trainings import Training
from stagetrace.progress import Silent
from stagetrace.recording import Recorded
from stagetrace.replay.backward import Reverse
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import Gradient
from stagetrace.tracing.responses.recorded import Replayed

CASES = {case.name: case for case in (
    trainings.DIGITS, trainings.DIGITS_SGD, trainings.COLOURS, trainings.SMALL_BERT, trainings.SMALL_GPT2,
)}  # fmt: skip
FURTHER = 2
"""Queries beside the first one."""

FITTING = 8
"""States that the byte budget holds."""


def run(report: Report) -> None:
    """Each training with all states kept, with as many as the root of the steps, and within a budget of bytes."""
    table, peaks = list[Row](), list[Row]()
    for case in CASES.values():
        done = _done(case, report)
        table.extend(done["costs"])
        peaks.extend(done["peaks"])
    report.table("The derivative through recorded steps", table, "exact")
    report.table("Peak memory beside the budget of states", peaks, "memory")
    for kept, limit in (("all", 3.0), ("root", 4.0)):
        for row in table:
            if row["states"] == kept:
                report.target(f"one query in trainings, states kept: {kept}, {row['model']}", row["trainings"], limit)
    for row in table:
        if row["states"] == "root":
            further = row["a further query, gradients a step"]
            report.target(f"a further query in gradients a step, {row['model']}", further, 2.0)
    for row in peaks:
        report.target(f"peak above two states over the budget, {row['model']}", row["share of the budget"], 1.0)


def _done(case: Training, report: Report) -> dict[str, list[Row]]:
    """What a case costs; with `--checkpoints FOLDER` kept there, and not measured again."""
    kept = None if report.asked.checkpoints is None else report.asked.checkpoints / f"{case.name}.json"
    if kept is not None and kept.exists():
        return json.loads(kept.read_text())
    with tempfile.TemporaryDirectory() as place:
        costs = _costs(case, Path(place), report)
        large = case in (trainings.SMALL_BERT, trainings.SMALL_GPT2)  # of the others a state is some kilobytes
        done = {"costs": costs, "peaks": [_peak(case, Path(place) / "ends")] if large else []}
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(done))
    return done


def _costs(case: Training, place: Path, report: Report) -> list[Row]:
    rows = case.data()
    ways = {"all": 1, "root": "auto", "budget": case.steps}
    folders = {"all": place / "all", "root": place / "root", "budget": place / "ends"}
    root = max(1, round(case.steps**0.5))
    for way, folder in folders.items():
        case.run(rows, folder, root if way == "root" else ways[way])
    budget = FITTING * _state(case)
    memory = {"all": 2**31, "root": 2**31, "budget": budget}
    passes = {way: _pass(case.chain(rows, folder, memory[way])["only"]) for way, folder in folders.items()}
    replays = {way: _replays(each) / case.steps for way, each in passes.items()}
    works: dict[str, Callable[[], object]] = {
        "training": lambda: case.run(rows),
        "gradients": _gradients(case, rows),
    }
    works |= {way: lambda each=each: each(1) for way, each in passes.items()}
    works["further"] = lambda: passes["root"](1 + FURTHER)
    # every pass was run once to count its replays, which warmed it up
    times = in_turn(works, report.asked.repetitions(3), warmups=0, clock=time.process_time)
    gradient, training = times["gradients"].median / case.steps, times["training"]
    return [
        {
            "model": case.name,
            "parameters": sum(p.numel() for p in case.made().parameters()),
            "states": way,
            "ms a gradient": 1e3 * gradient,
            "ms a training step": 1e3 * training.median / case.steps,
            "trainings": times[way].over(training),
            "gradients a step": times[way].over(times["gradients"]),
            "counted": 3 + replays[way],
            "a further query, gradients a step": _further(times) / FURTHER if way == "root" else None,
        }
        for way in folders
    ]


def _further(times: dict[str, Times]) -> float:
    """Of all further queries, in gradients a step."""
    rounds = zip(*(times[each].seconds for each in ("further", "root", "gradients")), strict=True)
    return median((several - one) / gradients for several, one, gradients in rounds)


def _state(case: Training) -> int:
    """Bytes of a state: the parameters, and two moments of each."""
    return 12 * sum(p.numel() for p in case.made().parameters())


def _gradients(case: Training, rows: list[Any]) -> Callable[[], object]:
    """As many gradients as the training takes, and nothing else of it."""
    model = case.made().train()
    batches = [torch.utils.data.default_collate(rows[at : at + case.batch]) for at in range(0, len(rows), case.batch)]
    parameters = list(model.parameters())

    def work() -> None:
        for batch in batches:
            torch.autograd.grad(case.losses(model, batch).mean(), parameters, allow_unused=True)

    return work


def _pass(bound: BoundStage) -> Callable[[int], object]:
    """So many queries through the recorded training, checks of the recording included."""

    def work(queries: int) -> object:
        torch.manual_seed(3)
        gradient = Gradient(
            torch.randn(bound.trained.size, queries), bound.inherited.zeros(queries), bound.statistics.zeros(queries)
        )
        fresh = Recorded.load(bound.recording.folder)  # with every file read and compared
        return Replayed(bound, fresh).backward(gradient, None, Silent()).solution

    return work


def _replays(one: Callable[[int], object]) -> int:
    """How many steps a query replays before it runs them backwards."""
    count, forwards = 0, Reverse._forwards  # pyright: ignore[reportPrivateUsage]

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return forwards(*arguments)

    with patch.object(Reverse, "_forwards", counted):
        one(1)
    return count


def _peak(case: Training, folder: Path) -> Row:
    """Bytes that a query takes at most, with room for a few states, and with room for two, which it takes at least."""
    budget = FITTING * _state(case)
    least, found = (_apart(case, folder, memory) for memory in (1, budget))
    return {
        "model": case.name,
        "all states, MB": case.steps * _state(case) / 1e6,
        "budget, MB": budget / 1e6,
        "before, MB": found["before"] / 1e6,
        "peak, MB": found["peak"] / 1e6,
        "peak with two states, MB": least["peak"] / 1e6,
        "share of the budget": (found["peak"] - least["peak"] + 2 * _state(case)) / budget,
    }


def _apart(case: Training, folder: Path, memory: int) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.exact", case.name, str(folder), str(memory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def _measured(name: str, folder: Path, memory: int) -> dict[str, int]:
    """What the fresh process does: one query, after the model and the data were made."""
    torch.set_num_threads(1)
    case = CASES[name]
    bound = case.chain(case.data(), folder, memory)["only"]
    before = peak()
    _pass(bound)(1)
    return {"before": before, "peak": peak()}


if __name__ == "__main__":
    print(json.dumps(_measured(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
