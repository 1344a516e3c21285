"""Steps and states on their way to disk: states as they are kept, the steps between them some of the time."""

import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch

from stagetrace.errors import ResultsError
from stagetrace.recording.files import FORMAT, RECORD, state_name, write_state, write_steps
from stagetrace.recording.spacing import Spacing, in_bytes
from stagetrace.recording.step import Micro, State, Step
from stagetrace.results.files import atomic, force, sha256_of
from stagetrace.version import __version__

LOG = logging.getLogger("stagetrace")

_PAUSE = 5.0
"""Seconds between two times at which what was recorded so far is put together such that it can be read."""


@final
@dataclass
class Writer:
    """The sink of a watch: keeps a folder such that what was recorded before a kill can be read.

    described: what goes into `recording.json` beside the files. batches: how many a pass over the loader has, where
    that is known. steps: how many there will be, where that is known.
    """

    folder: Path
    spacing: Spacing
    described: dict[str, Any]
    batches: int | None = None
    steps: int | None = None
    _waiting: list[Step] = field(default_factory=list)
    _files: dict[str, str] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)
    _asked: set[int] = field(default_factory=set)
    _parts: list[int] = field(default_factory=list)
    _done: int = 0
    _said: float = 0.0

    def __post_init__(self) -> None:
        if (self.folder / RECORD).exists():
            raise ResultsError(
                f"{self.folder} holds a recording already; record into another folder, or delete it first (a resumed "
                "training is recorded into a folder of its own: Unrolled(shared, [first, second]))"
            )

    def wants(self, step: int) -> bool:
        return self.spacing(step) and step not in self._sizes

    def state(self, step: int, state: State, *, asked: bool = False) -> None:
        """Write the state before a step, and the steps before it. asked: it stays, whatever the budget."""
        if asked:
            self._asked.add(step)
        if step in self._sizes:
            return
        self._write_state(step, state)
        spaced = {each: size for each, size in self._sizes.items() if each not in self._asked}
        dropped = [state_name(each) for each in self.spacing.dropped(spaced)]
        self._files = {name: digest for name, digest in self._files.items() if name not in dropped}
        self._sizes = {each: size for each, size in self._sizes.items() if state_name(each) in self._files}
        if dropped or not self._parts or time.monotonic() - self._said > _PAUSE:
            self._write_waiting()
            self.record(complete=False, forced=False)
        for name in dropped:
            (self.folder / name).unlink()

    def step(self, step: Step) -> None:
        self._waiting.append(step)
        if self._done + len(self._waiting) == 1:
            self._say(step)

    def _say(self, step: Step) -> None:
        """How much will be written, told once the first step is done."""
        one, state = sum(_size(micro) for micro in step.micros), max(self._sizes.values(), default=0)
        said = f"recording into {self.folder}: {in_bytes(one)} a step, {in_bytes(state)} a kept state"
        if self.steps is not None:
            states = sum(self.spacing(each) for each in range(self.steps)) + 1
            kept = min(state * states, self.spacing.budget or math.inf)
            said += f"; {self.steps:,} steps with their states: {in_bytes(one * self.steps + kept)}"
        elif self.batches is not None:
            size = in_bytes(one * self.batches / len(step.micros))
            said += f"; a pass of {self.batches:,} batches: {size} and its states"
        LOG.info(said)

    def finish(self, last: State) -> None:
        """Write what is left, and the state after the last step; `record` says that it is there."""
        self._write_waiting()
        if self._done not in self._sizes:
            self._write_state(self._done, last)

    def _write_state(self, step: int, state: State) -> None:
        name = write_state(self.folder, step, state)
        self._sealed(name)
        self._sizes[step] = (self.folder / name).stat().st_size

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

    def record(self, *, complete: bool, forced: bool = True) -> None:
        """Say what is there. complete: the training ended as meant."""
        said = {
            "format": FORMAT,
            "stagetrace": __version__,
            "torch": torch.__version__,
            "complete": complete,
            "steps": self._done,
            "states": sorted(step for step in self._sizes if step <= self._done),
            "parts": self._parts,
            **self.described,
            "files": self._files,
        }
        if forced:
            for name in self._files:
                force(self.folder / name)
        with atomic(self.folder / RECORD, forced=forced) as temporary:
            temporary.write_text(json.dumps(said, indent=1) + "\n")
        self._said = time.monotonic()


def _size(micro: Micro) -> int:
    """About how many bytes a batch takes: its tensors, the random generators' states, the examples' numbers."""
    content = micro.content if isinstance(micro.content, tuple) else (micro.content, {})
    tensors = [*content[1].values(), *micro.generators.values()]
    return sum(t.numel() * t.element_size() for t in tensors) + len(content[0]) + 8 * len(micro.ids)
