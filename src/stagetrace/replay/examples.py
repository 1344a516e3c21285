"""Whether the stage's examples are those that were recorded under their numbers."""

from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from stagetrace.errors import StagetraceError, refuse
from stagetrace.recording.content import read
from stagetrace.recording.recorded import Recorded
from stagetrace.recording.step import Micro
from stagetrace.stages.bound import BoundStage

BATCHES = 16
"""How many recorded batches are made again: one in four from other data passes with a chance of 1 %."""


def check_examples(bound: BoundStage, recorded: Recorded) -> tuple[str, ...]:
    """Make some batches again from the stage's data, and hold them against the recorded ones.

    They are the first, a late one, and others drawn from the whole training: it may have gone over several data sets.

    Returns:
        What a user should know: that only a part of a batch could be compared, or nothing.

    Raises:
        DescriptionError: the data give others, each time the same: they are in another order, or other data.
    """
    draw, said = Random(0), list[str]()
    steps = {0, recorded.blocks[-1].start, *draw.sample(range(recorded.steps), min(BATCHES, recorded.steps))}
    for step in sorted(steps):
        micros = recorded.read(range(step, step + 1))[0].micros
        micro = micros[draw.randrange(len(micros))]
        _check_numbers(bound, micro)
        if not isinstance(micro.content, str):
            said.extend(_compared(bound, micro))
    return tuple(dict.fromkeys(said))


def _check_numbers(bound: BoundStage, micro: Micro) -> None:
    examples = len(bound.stage.examples)
    wrong = [index for index in micro.ids if not 0 <= index < examples]
    if wrong:
        refuse(
            f"{bound.stage.where}: example {wrong[0]} was recorded, but the stage's data set has {examples:,} "
            "examples; give the data set that was trained on"
        )


def _compared(bound: BoundStage, micro: Micro) -> Iterator[str]:
    where = bound.stage.where
    assert not isinstance(micro.content, str)
    recorded = dict(_leaves(read(*micro.content)))
    try:
        made, again = (dict(_leaves(batch.content)) for batch in bound.stage.examples.read([micro.ids, micro.ids]))
    except StagetraceError:
        yield "examples' numbers were not checked: the stage's data set cannot make the batches that were recorded"
        return
    common = [place for place, value in recorded.items() if place in made and _comparable(value, made[place])]
    same = [place for place in common if _equal(recorded[place], made[place])]
    if common and len(same) == len(common):
        return
    if any(_tells(recorded[place]) for place in same):
        yield f"of the recorded batches {', '.join(same)} is that of the stage's examples, the rest was drawn at random"
        return
    if common and all(_equal(made[place], again[place]) for place in common):
        refuse(
            f"{where}: the examples {', '.join(map(str, micro.ids[:5]))} of its data are not those that were recorded "
            "under these numbers, so scores would name the wrong examples; give the data set that was trained on, in "
            "its order (of several data sets one that holds them all, such as torch.utils.data.ConcatDataset)"
        )
    yield "examples' numbers could not be checked: the stage's data draw at random (augmentation, masks)"


def _leaves(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """What a batch holds, by its place in it."""
    if isinstance(content, Mapping):
        for key, value in cast("Mapping[Any, Any]", content).items():
            yield from _leaves(value, f"{place}.{key}".lstrip("."))
    elif isinstance(content, tuple | list):
        for number, value in enumerate(cast("list[Any]", content)):
            yield from _leaves(value, f"{place}[{number}]")
    elif isinstance(content, np.ndarray):
        yield place, torch.from_numpy(content)
    else:
        yield place, content


def _comparable(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape
    return isinstance(one, bool | int | float | str) and isinstance(other, type(one))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.cpu().double(), other.detach().cpu().double())
    return one == other


def _tells(value: Any) -> bool:
    """Whether agreement says something: labels of one class agree in any order."""
    return bool(isinstance(value, Tensor) and value.numel() and bool((value != value.flatten()[0]).any()))
