"""A recording read back: its steps, and its states, each file checked against its digest before it is used."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, cast, final

from stagetrace.errors import ResultsError, refuse
from stagetrace.recording.files import (
    FORMAT,
    RECORD,
    Part,
    inputs_name,
    is_digest,
    is_whole,
    read_state,
    state_name,
    steps_name,
)
from stagetrace.recording.step import State, Step
from stagetrace.results.files import sha256_of


@final
@dataclass(frozen=True)
class Recorded:
    """What a folder holds of a training.

    folder: where it lies. steps: how many optimiser steps. states: before which steps a state was kept, ascending; the
    last is the number of steps. groups: the parameters' names in each of the optimiser's groups. trained: those that
    required a gradient. optimizer: the class, such as `torch.optim.adam.Adam`. examples: how many the data set had.
    before: the session that this one continues; the first steps are those of it. averaged: whether the stage ended at
    the moving average of the parameters.
    """

    folder: Path
    steps: int
    states: tuple[int, ...]
    groups: tuple[tuple[str, ...], ...]
    trained: tuple[str, ...]
    optimizer: str
    examples: int | None
    constants: str
    inputs: bool
    digest: str = field(repr=False)
    _parts: tuple[int, ...] = field(repr=False)
    _files: dict[str, str] = field(repr=False, compare=False)
    before: "Recorded | None" = field(default=None, repr=False)
    averaged: bool = False
    _open: dict[int, Part] = field(default_factory=dict, init=False, repr=False, compare=False)
    _whole: dict[str, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Size and time of the files whose digests were compared: as long as both stay, that is not done again."""

    def __getstate__(self) -> dict[str, object]:
        """Without what was read on the way."""
        return {**vars(self), "_open": {}}

    @staticmethod
    def load(path: "str | Path | Recorded") -> "Recorded":
        """Read what a folder says of itself.

        Raises:
            ResultsError: it holds no recording, one of another format, or one that was cut off before its first state.
        """
        if isinstance(path, Recorded):
            return path
        folder = Path(path)
        said = _said(folder)
        return Recorded(
            folder,
            said["states"][-1],
            tuple(said["states"]),
            tuple(map(tuple, said["groups"])),
            tuple(said["trained"]),
            said["optimizer"],
            said["examples"],
            said["constants"],
            said["inputs"] == "kept",
            sha256_of(folder / RECORD),
            tuple(said["parts"]),
            said["files"],
        )

    @cached_property
    def blocks(self) -> tuple[range, ...]:
        """The steps between one kept state and the next."""
        return tuple(range(a, b) for a, b in zip(self.states, self.states[1:], strict=False))

    def state(self, step: int) -> State:
        """The state that was kept before a step.

        Raises:
            ResultsError: the file is missing or damaged.
        """
        if self.before is not None and step <= self._begins:
            return self.before.state(step)
        self._check(state_name(step - self._begins))
        return read_state(self.folder, step - self._begins)

    def read(self, block: range) -> Sequence[Step]:
        """The steps of a block, in order.

        Raises:
            ResultsError: a file is missing or damaged.
        """
        if self.before is not None and block.stop <= self._begins:
            return self.before.read(block)
        block = range(block.start - self._begins, block.stop - self._begins)
        ends = [*self._parts[1:], self.steps - self._begins]
        found: dict[int, Step] = {}
        for number, (start, stop) in enumerate(zip(self._parts, ends, strict=True)):
            if start < block.stop and block.start < stop:
                found |= self._part(number).steps(block)
        return [found[step] for step in block]

    def _part(self, number: int) -> Part:
        """A part of the steps; the last one stays open, since blocks are read one after the other."""
        self._check(steps_name(number))
        if inputs_name(number) in self._files:
            self._check(inputs_name(number))
        if number not in self._open:
            self._open.clear()
            self._open[number] = Part(self.folder, number, inputs=self.inputs)
        return self._open[number]

    @property
    def _begins(self) -> int:
        """The number of its first step."""
        return 0 if self.before is None else self.before.steps

    def cut(self, last: int) -> "Recorded":
        """The recording up to a kept state: what came later is left out."""
        if last not in self.states:
            refuse(f"{self.folder}: no state was kept before step {last}; kept are {', '.join(map(str, self.states))}")
        if self.before is not None and last <= self._begins:
            return self.before if last == self._begins else self.before.cut(last)
        return replace(self, steps=last, states=tuple(step for step in self.states if step <= last))

    def _check(self, name: str) -> None:
        path = self.folder / name
        if not path.is_file():
            raise ResultsError(f"{self.folder}: '{name}' is missing; copy the whole folder, or record again")
        found = path.stat()
        as_it_was = found.st_size, found.st_mtime_ns
        if self._whole.get(name) == as_it_was:
            return
        if name not in self._files or not is_whole(path, self._files[name]):
            raise ResultsError(f"{path} is not what was recorded (its digest differs); copy it anew, or record again")
        self._whole[name] = as_it_was


def _said(folder: Path) -> dict[str, Any]:
    """What a folder says of itself, once it fits together.

    Raises:
        ResultsError: see `Recorded.load`.
    """
    path = folder / RECORD
    try:
        said: Any = json.loads(path.read_text())
    except FileNotFoundError as cause:
        raise ResultsError(f"{folder} holds no recording (there is no {RECORD}); see stagetrace.Recording") from cause
    except (OSError, ValueError) as cause:
        raise ResultsError(f"{path} cannot be read ({cause}); record the training again") from cause
    form = said.get("format") if isinstance(said, dict) else None
    if form != FORMAT:
        raise ResultsError(f"{folder}: a recording of format {form!r}; this version reads {FORMAT}")
    odd = next((name for name, fits in _ENTRIES.items() if not fits(said.get(name, ...))), None)
    if odd is None and max(said["states"], default=0) > said["steps"]:
        odd = "steps"
    if odd is None and said["steps"] and not said["parts"]:
        odd = "parts"
    if odd is not None:
        raise ResultsError(
            f"{path}: '{odd}' is not what a recording says there; it was damaged or edited, so copy the folder anew, "
            "or record the training again"
        )
    if not said["steps"] or len(said["states"]) < 2:
        raise ResultsError(f"{folder}: the recording ends before its first step; record the training again")
    needed = {state_name(step) for step in said["states"]} | {steps_name(n) for n in range(len(said["parts"]))}
    missing = sorted(needed - said["files"].keys())
    if missing:
        raise ResultsError(
            f"{path}: there is no digest of '{missing[0]}'; it was damaged or edited, so copy the folder anew, or "
            "record the training again"
        )
    return said


def _names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in cast("list[Any]", value))


def _from_zero(value: object) -> bool:
    """Whole numbers that rise from 0: states and parts begin with the first step."""
    if not isinstance(value, list) or not all(type(step) is int for step in cast("list[Any]", value)):
        return False
    steps = cast("list[int]", value)
    return (not steps or steps[0] == 0) and all(a < b for a, b in pairwise(steps))


_ENTRIES: Mapping[str, Callable[[Any], bool]] = {
    "steps": lambda value: type(value) is int and value >= 0,
    "states": _from_zero,
    "parts": _from_zero,
    "groups": lambda value: isinstance(value, list) and all(map(_names, cast("list[Any]", value))),
    "trained": _names,
    "optimizer": lambda value: isinstance(value, str),
    "examples": lambda value: value is None or (type(value) is int and value > 0),
    "constants": lambda value: isinstance(value, str),
    "inputs": lambda value: value in ("kept", "again"),
    "files": lambda value: isinstance(value, dict) and all(map(is_digest, cast("dict[str, Any]", value).values())),
}
"""What `recording.json` must say, and whether it does."""
