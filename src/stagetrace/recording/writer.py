"""Steps and states on their way to disk: states as they are kept, the steps between them some of the time.

What is kept is decided in the training's thread, on copies; digests and files are made in another, behind it.
"""

import json
import logging
import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from stagetrace.errors import ResultsError, StagetraceError
from stagetrace.recording.background import Background
from stagetrace.recording.files import FORMAT, RECORD, digest_of, size_of, state_name, write_state, write_steps
from stagetrace.recording.spacing import Spacing, in_bytes
from stagetrace.recording.step import Micro, State, Step
from stagetrace.results.files import atomic, force
from stagetrace.version import __version__

LOG = logging.getLogger("stagetrace")

_PAUSE = 5.0
"""Seconds between two times at which what was recorded so far is put together such that it can be read."""

_PART = 2**26
"""Bytes of steps that may wait for that."""

_STEPS = 32
"""Steps that are written beside a state even before that, so that few are left at the end."""


@final
@dataclass
class Writer:
    """The sink of a watch: keeps a folder such that what was recorded before a kill can be read.

    described: what goes into `recording.json` beside the files. batches: how many a pass over the loader has, where
    that is known. steps: how many there will be, where that is known.

    Raises:
        ResultsError: the folder holds a recording. Of files, the next time that something is handed over.
    """

    folder: Path
    spacing: Spacing
    described: dict[str, Any]
    batches: int | None = None
    steps: int | None = None
    _waiting: list[Step] = field(default_factory=list)
    _bytes: int = 0
    _sizes: dict[int, int] = field(default_factory=dict)
    _asked: set[int] = field(default_factory=set)
    _parts: list[int] = field(default_factory=list)
    _done: int = 0
    _said: float = 0.0
    _background: Background = field(default_factory=Background)
    _told: bool = False
    _files: dict[str, str] = field(default_factory=dict)
    """The digests of what is there; of the other thread alone, while that is at work."""

    def __post_init__(self) -> None:
        if (self.folder / RECORD).exists():
            raise ResultsError(
                f"{self.folder} holds a recording already; record into another folder, or delete it first (a resumed "
                "training is recorded into a folder of its own: Unrolled(shared, [first, second]))"
            )

    @property
    def seconds(self) -> float:
        """Of the processor that writing has taken, beside the training."""
        return self._background.seconds

    def wants(self, step: int) -> bool:
        return self.spacing(step) and step not in self._sizes

    def state(self, step: int, state: State, *, asked: bool = False) -> None:
        """Write the state before a step, and the steps before it. asked: it stays, whatever the budget.

        state: copies, which are the writer's own from here on.
        """
        if asked:
            self._asked.add(step)
        if step in self._sizes:
            return
        self._sizes[step] = size_of(state)
        spaced = {each: size for each, size in self._sizes.items() if each not in self._asked}
        dropped = self.spacing.dropped(spaced)
        self._sizes = {each: size for each, size in self._sizes.items() if each not in dropped}
        works = [partial(self._write_state, step, state)]
        due = dropped or not self._parts or time.monotonic() - self._said > _PAUSE
        if due or len(self._waiting) >= _STEPS:
            works += self._part()
        if due:
            names = [state_name(each) for each in dropped]
            works.append(partial(self._record, self._description(complete=False), names))
            self._said = time.monotonic()
        self._do(step, works)

    def step(self, step: Step) -> None:
        size = sum(_size(micro) for micro in step.micros)
        if not self._done and not self._waiting:
            self._say(step, size)
        self._waiting.append(step)
        self._bytes += size
        if self._bytes > _PART:
            works = self._part()
            self._do(self._done, works)

    def _say(self, step: Step, one: int) -> None:
        """How much will be written, told once the first step is done."""
        state = max(self._sizes.values(), default=0)
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
        works = self._part()
        if self._done not in self._sizes:
            self._sizes[self._done] = size_of(last)
            works.append(partial(self._write_state, self._done, last))
        self._do(self._done, works)
        self.wait()

    def record(self, *, complete: bool) -> None:
        """Say what is there, and have all of it on the disk. complete: the training ended as meant."""
        self._do(self._done, [partial(self._record, self._description(complete=complete), [], forced=True)])
        self.wait()

    def wait(self) -> None:
        """Until what was handed over is written.

        Raises:
            ResultsError: it could not be, and that was not said before.
        """
        self._background.wait()
        self._check()

    def _part(self) -> list[partial[None]]:
        """What writes the steps that wait, if there are any."""
        if not self._waiting:
            return []
        write = partial(self._write_steps, len(self._parts), self._done, self._waiting)
        self._parts.append(self._done)
        self._done += len(self._waiting)
        self._waiting, self._bytes = [], 0
        return [write]

    def _do(self, step: int, works: list[partial[None]]) -> None:
        """Have something done behind the training. step: how far that has come."""

        def done() -> None:
            try:
                for work in works:
                    work()
            except StagetraceError as cause:
                raise ResultsError(f"recording, before step {step + 1:,} of the training: {cause}") from cause

        self._check()
        self._background.do(done)

    def _check(self) -> None:
        """Raise what went wrong behind the training; once, so that the training may end as it likes."""
        if self._background.failure is not None and not self._told:
            self._told = True
            raise self._background.failure

    def _description(self, *, complete: bool) -> dict[str, Any]:
        """What `recording.json` will say beside the files."""
        return {
            "format": FORMAT,
            "stagetrace": __version__,
            "torch": torch.__version__,
            "complete": complete,
            "steps": self._done,
            "states": sorted(step for step in self._sizes if step <= self._done),
            "parts": list(self._parts),
            **self.described,
        }

    # from here on in the other thread

    def _write_state(self, step: int, state: State) -> None:
        self._sealed([write_state(self.folder, step, state)])

    def _write_steps(self, part: int, first: int, steps: list[Step]) -> None:
        self._sealed(write_steps(self.folder, part, first, steps))

    def _sealed(self, names: list[str]) -> None:
        for name in names:
            force(self.folder / name)
            self._files[name] = digest_of(self.folder / name)

    def _record(self, said: dict[str, Any], dropped: list[str], *, forced: bool = False) -> None:
        self._files = {name: digest for name, digest in self._files.items() if name not in dropped}
        with atomic(self.folder / RECORD, forced=forced) as temporary:
            temporary.write_text(json.dumps({**said, "files": self._files}, indent=1) + "\n")
        for name in dropped:
            (self.folder / name).unlink()


def _size(micro: Micro) -> int:
    """About how many bytes a batch takes: its tensors, the random generators' states, the examples' numbers."""
    content = micro.content if isinstance(micro.content, tuple) else (micro.content, {})
    tensors = [*content[1].values(), *micro.generators.values()]
    return sum(t.numel() * t.element_size() for t in tensors) + len(content[0]) + 8 * len(micro.ids)
