"""What every process does: read what it is given, run one method by the clock of the processor, write what it found.

The one line that it prints, JSON:

    start, s      of the processor until the data are read: imports of PyTorch and of the library
    fit, s        what depends on the curvature or the queries: factors, solves, features
    score, s      the rest, until all scores are there
    in all, s     fit and score, and not start; what a library imports later is in it
    products      with the curvature, over all queries; None where none are made
    peak MB, before MB   the most memory held at once, and what was held before the first phase
    covers        parameters that the scores see
    system        what is solved, as "G + 0.01"; None where nothing is
    approximates  the same of a method that approximates a system and does not claim to solve it

OUT holds `scores` `[queries, examples]`, positive = harmful, and `solution` `[parameters, queries]` if there is one. Of
several ranks the first one writes.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import final

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.rivals.given import Given


class LeftOut(Exception):
    """A method that is not run here; its words say why."""


@final
@dataclass(frozen=True, eq=False)
class Found:
    """What a method hands back; see above."""

    scores: Tensor
    covers: int
    system: str | None = None
    approximates: str | None = None
    solution: Tensor | None = None
    products: int | None = None
    notes: tuple[str, ...] = ()


@final
@dataclass
class Spent:
    """Seconds of the processor, by phase."""

    phases: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def on(self, phase: str) -> Generator[None]:
        before = time.process_time()
        yield
        self.phases[phase] = self.phases.get(phase, 0.0) + time.process_time() - before


Method = Callable[[Given, Spent], Found]


def command(package: str, methods: Mapping[str, Method]) -> None:
    """The command line of a library's module: GIVEN OUT METHOD."""
    given_path, out, name = sys.argv[1:]
    torch.set_num_threads(1)
    given = Given.read(Path(given_path))
    torch.manual_seed(given.settings.seed)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (given.settings.memory, hard))
    start, before, spent = time.process_time(), peak_mb(), Spent()
    try:
        found = methods[name](given, spent)
    except LeftOut as why:
        print(json.dumps({"left out": str(why)}))
        return
    if found.scores.shape[1] != len(given.train):
        raise ValueError(f"{package}, {name}: scores of shape {list(found.scores.shape)}, {len(given.train)} examples")
    line = {
        "start, s": start,
        **{f"{phase}, s": seconds for phase, seconds in spent.phases.items()},
        "in all, s": sum(spent.phases.values()),
        "products": found.products,
        "peak MB": peak_mb(),
        "before MB": before,
        "covers": found.covers,
        "of": given.parameters,
        "system": found.system,
        "approximates": found.approximates,
        "version": version(package),
        "notes": list(found.notes),
    }
    if os.environ.get("RANK", "0") != "0":
        return
    tensors = {"scores": found.scores} | ({} if found.solution is None else {"solution": found.solution})
    save_file({name: value.detach().float().contiguous() for name, value in tensors.items()}, out)
    print(json.dumps(line))


def peak_mb() -> float:
    """The most memory that this process has held. (Linux hands `ru_maxrss` down from the process that started it.)"""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
