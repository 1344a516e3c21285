"""Rows as they come: a process each, its line and its scores kept in WORK."""

import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, final

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.bench.environments import environment
from benchmarks.bench.inputs import Inputs
from benchmarks.bench.rows import Ask
from benchmarks.rivals.call import called
from stagetrace.results.files import write_text

LIMIT = 600.0
"""Seconds of the clock that a row may take."""


@final
@dataclass(frozen=True, eq=False)
class Measured:
    """A row that is done: `line` is what its process printed, see `benchmarks/rivals/process.py`."""

    ask: Ask
    line: dict[str, Any]
    out: Path

    @property
    def seconds(self) -> float | None:
        return self.line.get("in all, s")

    @property
    def scores(self) -> Tensor | None:
        """`[queries, examples]`, positive = harmful."""
        return load_file(self.out)["scores"] if self.seconds is not None and self.out.exists() else None

    @property
    def solution(self) -> Tensor | None:
        """`[parameters, queries]` in float64."""
        found = load_file(self.out).get("solution") if self.seconds is not None and self.out.exists() else None
        return None if found is None else found.double()


@final
@dataclass(frozen=True)
class Bench:
    """Measures rows and keeps them: WORK/rows/NAME.json and WORK/scores/NAME.safetensors."""

    inputs: Inputs
    environments: Path

    def measured(self, asks: Sequence[Ask], only: tuple[str, ...], say: Any) -> list[Measured]:
        """All that are done or wanted, in their order."""
        found: list[Measured] = []
        for ask in asks:
            kept = self._rows / f"{ask.slug}.json"
            if not kept.exists() and ask.wanted(only):
                line = self._measure(ask)
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_text(kept, json.dumps({"row": ask.name, **line}, indent=1, ensure_ascii=False) + "\n")
                took = line.get("left out") or f"{line['in all, s']:.3g} s of the processor"
                say(f"{ask.name}: {took} ({line['clock, s']:.0f} s)")
            if kept.exists():
                found.append(Measured(ask, json.loads(kept.read_text("utf-8")), self._out(ask)))
        return found

    @property
    def _rows(self) -> Path:
        return self.inputs.work / "rows"

    def _out(self, ask: Ask) -> Path:
        return self.inputs.work / "scores" / f"{ask.slug}.safetensors"

    def _measure(self, ask: Ask) -> dict[str, Any]:
        given, out = self.inputs.path(ask.given).absolute(), self._out(ask).absolute()
        out.parent.mkdir(parents=True, exist_ok=True)
        made = environment(self.environments, ask.rival)
        facts = {"started": datetime.now().isoformat(timespec="seconds"), "load": os.getloadavg()[0]}
        began = time.perf_counter()
        if made.python is None:
            line: dict[str, Any] = {"left out": made.why}
        else:
            line = called(made.python, ask.rival, ask.method, given, out, LIMIT, _launched(ask)).line
        return line | facts | {"clock, s": time.perf_counter() - began}


def _launched(ask: Ask) -> tuple[str, ...]:
    """torchrun's words, at a port that is free now."""
    if not ask.ranks:
        return ()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = ("--nnodes", "1", "--nproc-per-node", str(ask.ranks))
    return ("-m", "torch.distributed.run", *ranks, "--master-addr", "127.0.0.1", "--master-port", str(port))
