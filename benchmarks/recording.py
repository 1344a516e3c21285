"""`recording`: what it costs to record a training, of small models whose steps take milliseconds, and of a larger one.

`share, %` is what recording took of the training's own thread, of all that this thread took: by the processor's
time, which a busy machine changes little. `clock, %` is the same by the clock, as `recording.json` says it, with what
the thread waited for; others on the machine are in that. `writer, %` is the processor's time of the thread that writes
behind the training, in per cent of the training's: where a core is idle it costs nothing.

The work, counted: of a step a copy of the batch and of the parameters, and the gradient's norm; of a kept state a copy
in the training's thread, its file and digest behind it.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest.mock import patch

from benchmarks import trainings
from benchmarks.report import Report, Row
from benchmarks.trainings import Training

CASES = (trainings.TINY_BERT, trainings.TINY_GPT2, trainings.DIGITS, trainings.MEDIUM_BERT)
EVERY: tuple[int | str, ...] = ("auto", 1)
TARGET = 5.0


def run(report: Report) -> None:
    """Each model, with a state every root of the steps and with one every step."""
    table = [row for case in CASES for row in _recorded(case, report.asked.repetitions(3))]
    report.table("What recording takes of a training", table, "recording")
    for row in table:
        if row["a state every"] == "auto":
            report.target(f"share of recording in %, {row['model']}", row["share, %"], TARGET)


def _recorded(case: Training, repetitions: int) -> list[Row]:
    rows, table = case.data(), list[Row]()
    case.run(rows)
    started = time.thread_time()
    case.run(rows)
    step = (time.thread_time() - started) / case.steps
    for every in EVERY:
        clock, processor = list[dict[str, float]](), list[dict[str, float]]()
        size = 0
        for _ in range(repetitions):
            said, size = _once(case, rows, every)
            clock.append(said)
            with patch.object(time, "perf_counter", time.thread_time):  # the clock that a recording reads
                processor.append(_once(case, rows, every)[0])
        table.append(
            {
                "model": case.name,
                "parameters": sum(p.numel() for p in case.made().parameters()),
                "a state every": every,
                "ms a step": 1e3 * step,
                "share, %": _share("recording", processor),
                "clock, %": _share("recording", clock),
                "writer, %": _share("writer", processor),
                "kB a step": size / case.steps / 1000,
            }
        )
    return table


def _share(what: str, each: list[dict[str, float]]) -> float:
    return 100 * median(said[what] / said["training"] for said in each)


def _once(case: Training, rows: list[object], every: int | str) -> tuple[dict[str, float], int]:
    """The seconds that a recording says it took, and its bytes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "recording"
        case.run(rows, folder, every)
        said: dict[str, float] = json.loads((folder / "recording.json").read_text())["seconds"]
        return said, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
