"""`startup`: seconds until the command line answers what needs no PyTorch, beside what importing PyTorch takes.

`--help` of each command imports pydantic, by which Typer checks what is typed, and that is most of its time.

By the clock and of the processor; each is the least of several processes, since another program's turn only adds.
"""

import os
import resource
import subprocess
import sys
import time

from benchmarks.report import Report, Row

COMMANDS = ("score", "check", "validate", "report", "show", "curate", "export", "demo")
WORDS = {
    "python": ["-c", "pass"],
    "stagetrace --version": ["-m", "stagetrace", "--version"],
    "stagetrace --help": ["-m", "stagetrace", "--help"],
    **{f"stagetrace {name} --help": ["-m", "stagetrace", name, "--help"] for name in COMMANDS},
    "import torch": ["-c", "import torch"],
}
TARGET = 0.3


def run(report: Report) -> None:
    """Each command several times, in turn."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in WORDS}
    for _ in range(report.asked.repetitions(7)):
        for name, words in WORDS.items():
            taken[name].append(_once(words))
    table: list[Row] = [
        {"command": name, "s": min(clock for clock, _ in each), "processor s": min(own for _, own in each)}
        for name, each in taken.items()
    ]
    report.table("Seconds until it answers", table, "commands")
    for row in table:
        if row["command"].startswith("stagetrace"):
            report.target(f"processor seconds of {row['command']}", row["processor s"], TARGET)


def _once(words: list[str]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], env=os.environ, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
