"""Steps and states on their way to disk: a part of the steps is written each time a state is kept."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch

from stagetrace.errors import ResultsError, refuse
from stagetrace.recording.files import FORMAT, RECORD, write_state, write_steps
from stagetrace.recording.step import State, Step
from stagetrace.results.files import atomic, sha256_of
from stagetrace.version import __version__


@final
@dataclass
class Spacing:
    """Which states are kept: every `every` steps, or before the steps 0, 1, 4, 9, 16, ... where that is "auto".

    With squares neither the number of states nor the longest way between two of them outgrows the square root of the
    steps (by more than twice), without the number of steps being known beforehand.
    """

    every: int | str

    def __post_init__(self) -> None:
        number = isinstance(self.every, int) and not isinstance(self.every, bool) and self.every > 0
        if not (number or self.every == "auto"):
            refuse(f"Recording: every must be a number of steps, at least 1, or 'auto', got {self.every!r}")

    def __call__(self, step: int) -> bool:
        if isinstance(self.every, int):
            return step % self.every == 0
        return math.isqrt(step) ** 2 == step


@final
@dataclass
class Writer:
    """The sink of a watch: keeps a folder such that what was recorded before a kill can be read.

    described: what goes into `recording.json` beside the files.
    """

    folder: Path
    spacing: Spacing
    described: Mapping[str, Any]
    seconds: float = 0.0
    _waiting: list[Step] = field(default_factory=list)
    _files: dict[str, str] = field(default_factory=dict)
    _states: list[int] = field(default_factory=list)
    _parts: list[int] = field(default_factory=list)
    _done: int = 0

    def __post_init__(self) -> None:
        if (self.folder / RECORD).exists():
            raise ResultsError(
                f"{self.folder} holds a recording already; record into another folder, or delete it first (a resumed "
                "training is recorded into a folder of its own: Unrolled(shared, [first, second]))"
            )

    def wants(self, step: int) -> bool:
        return self.spacing(step) and step not in self._states

    def state(self, step: int, state: State) -> None:
        """Write the state before a step, and the steps before it."""
        started = time.perf_counter()
        self._write_waiting()
        self._sealed(write_state(self.folder, step, state))
        self._states.append(step)
        self._record(complete=False)
        self.seconds += time.perf_counter() - started

    def step(self, step: Step) -> None:
        self._waiting.append(step)

    def finish(self, last: State | None, *, complete: bool) -> None:
        """Write what is left, and the state after the last step."""
        self._write_waiting()
        if last is not None and self._done not in self._states:
            self._sealed(write_state(self.folder, self._done, last))
            self._states.append(self._done)
        self._record(complete=complete)

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        for name in write_steps(self.folder, len(self._parts), self._done, self._waiting):
            self._sealed(name)
        self._parts.append(self._done)
        self._done += len(self._waiting)
        self._waiting = []

    def _sealed(self, name: str) -> None:
        self._files[name] = sha256_of(self.folder / name)

    def _record(self, *, complete: bool) -> None:
        said = {
            "format": FORMAT,
            "stagetrace": __version__,
            "torch": torch.__version__,
            "complete": complete,
            "steps": self._done,
            "states": sorted(self._states),
            "parts": self._parts,
            **self.described,
            "files": self._files,
        }
        with atomic(self.folder / RECORD) as temporary:
            temporary.write_text(json.dumps(said, indent=1) + "\n")
