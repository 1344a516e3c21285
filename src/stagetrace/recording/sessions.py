"""A training that was interrupted and resumed: its sessions, each recorded into a folder of its own, put together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.recording.recorded import Recorded
from stagetrace.recording.step import State


def joined(sessions: Sequence[Recorded]) -> Recorded:
    """The sessions one after the other: each began at a state that the one before it kept, or left.

    What a session did after the state from which it was resumed is left out.

    Raises:
        DescriptionError: none is given, they are of different trainings, or one did not begin where the other was.
        ResultsError: a file is missing or damaged.
    """
    if not sessions:
        refuse("Unrolled: no recording is given; give the folder of one, or of each session in order")
    first, *later = sessions
    for session in later:
        first = _followed(first, session)
    return first


def _followed(first: Recorded, second: Recorded) -> Recorded:
    where = f"{second.folder} does not continue {first.folder}"
    for what, one, other in (
        ("the optimiser is", first.optimizer, second.optimizer),
        ("the parameters in the optimiser's groups are", first.groups, second.groups),
        ("the number of examples is", first.examples, second.examples),
        ("the values of parameters that were not trained are", first.constants, second.constants),
        ("what is kept of batches is", first.inputs, second.inputs),
    ):
        if one != other:
            refuse(f"{where}: {what} another; give the sessions of one training, in the order in which they ran")
    start, near, apart = second.state(second.states[0]), None, ""
    for step in reversed(first.states):
        state = first.state(step)
        if not all(_equal(*pair) for pair in ((start.values, state.values), (start.buffers, state.buffers))):
            continue
        averaged = _equal(start.average, state.average)
        if averaged and _slots_equal(start, state):
            cut = first if step == first.steps else first.cut(step)
            digest = sha256(f"{first.digest}:{step}:{second.digest}".encode()).hexdigest()
            states = (*cut.states, *(step + each for each in second.states[1:]))
            trained = tuple(dict.fromkeys((*first.trained, *second.trained)))  # more of it may have been thawed
            return replace(second, steps=step + second.steps, states=states, digest=digest, before=cut, trained=trained)
        near = step
        apart = (
            "the optimiser's state is not: it was resumed with another optimiser state (a new optimiser, moments that "
            "were not saved)"
            if averaged
            else "the average of the parameters is not: it was begun anew, or not saved"
        )
    if near is not None:
        refuse(f"{where}: its parameters are those of step {near:,}, but {apart}; give it as a stage of its own")
    refuse(
        f"{where}: its first state is none of those that were kept (before the steps {_few(first.states)}); give the "
        "sessions in the order in which they ran, and keep a state where checkpoints are saved (Recording.of does; in "
        "a loop of your own every=... hits their steps)"
    )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _slots_equal(one: State, other: State) -> bool:
    if one.slots.keys() != other.slots.keys():
        return False
    return all(
        slots.keys() == other.slots[name].keys()
        and all(_same(value, other.slots[name][slot]) for slot, value in slots.items())
        for name, slots in one.slots.items()
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other.to(one.dtype))
    return bool(one == other)


def _few(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
