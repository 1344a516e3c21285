"""What an optimiser left behind when it stopped: its slots by the parameters' names, and how far its steps went."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.errors import refuse, some_names
from stagetrace.recording.names import plain_name
from stagetrace.recording.recorded import Recorded
from stagetrace.stages.bound import BoundStage

Settings = Mapping[str, Any]
Slots = Mapping[str, Any]


@final
@dataclass(frozen=True, eq=False)
class Left:
    """What is left of a training.

    slots: what the optimiser kept of each parameter, such as Adam's moments. group: the place of its group in `groups`.
    groups: each group's settings. rates: the sum of the learning rates of each group over the training.
    """

    slots: Mapping[str, Slots]
    group: Mapping[str, int]
    groups: Sequence[Settings]
    rates: Sequence[float]


def left_by_recording(recorded: Recorded, since: int = 0) -> Left:
    """What a recorded training ended with, and the rates of its steps as they were used. since: the first that counts.

    Raises:
        ResultsError: a file of it is missing or damaged.
    """
    rates: list[float] = [0.0] * len(recorded.groups)
    groups: Sequence[Settings] = ()
    for block in (block for block in recorded.blocks if block.stop > since):  # one at a time: steps hold their batches
        for number, step in zip(block, recorded.read(block), strict=True):
            if number >= since:
                groups = step.groups
                rates = [rate + float(group["lr"]) for rate, group in zip(rates, groups, strict=True)]
    groups = _decoupled(groups, recorded.optimizer.endswith(".AdamW"))
    group = {plain_name(name): place for place, names in enumerate(recorded.groups) for name in names}
    slots = {plain_name(name): kept for name, kept in recorded.state(recorded.steps).slots.items()}
    return Left(slots, group, groups, rates)


def left_by_optimizer(bound: BoundStage, optimizer: torch.optim.Optimizer, rates: Sequence[float] | None) -> Left:
    """What an optimiser of the stage's own model holds.

    Raises:
        DescriptionError: it trained another model, or its rates cannot be told.
    """
    names = {id(p): plain_name(name) for name, p in bound.stage.model.named_parameters()}
    group = {names.get(id(p)): place for place, each in enumerate(optimizer.param_groups) for p in each["params"]}
    slots = {names.get(id(p)): kept for p, kept in optimizer.state.items()}
    if None in group:
        refuse(
            f"{bound.stage.where}: the optimiser trains tensors that are not parameters of the stage's model, but of "
            "a copy; give optimizer.state_dict() instead"
        )
    named = {name: place for name, place in group.items() if name is not None}
    groups = _decoupled(optimizer.param_groups, isinstance(optimizer, torch.optim.AdamW))
    return _left(bound, {n: kept for n, kept in slots.items() if n is not None}, named, groups, rates)


def left_by_state(bound: BoundStage, state: Mapping[str, Any], rates: Sequence[float] | None) -> Left:
    """What `optimizer.state_dict()` holds: by the names in it, else in the order of the stage's parameters.

    Raises:
        DescriptionError: it is none, of other parameters, or its order or rates cannot be told.
    """
    where, space = bound.stage.where, bound.trained
    try:
        groups: Sequence[Settings] = state["param_groups"]
        numbers = [number for each in groups for number in each["params"]]
        names = [name for each in groups for name in each.get("param_names", ())]
        kept: Mapping[Any, Slots] = state["state"]
    except (KeyError, TypeError, AttributeError) as cause:
        refuse(
            f"{where}: the training must be a torch optimiser, its state_dict() or a recording ({cause!r} is missing)"
        )
    if not names:
        if len(groups) > 1:
            refuse(
                f"{where}: the saved state has {len(groups)} groups and no names, so that the order of its parameters "
                "cannot be told; give the optimiser itself, or train it with names: AdamW(model.named_parameters())"
            )
        moved = [number for number in numbers if number in kept] or numbers  # others had no gradient
        numbers, names = (moved if len(moved) == len(space.names) else numbers), list(space.names)
    if len(names) != len(numbers):
        refuse(f"{where}: the saved state has {len(numbers)} parameters, but the stage trained {len(names)}")
    place = {number: at for at, each in enumerate(groups) for number in each["params"]}
    named = {plain_name(name): number for name, number in zip(names, numbers, strict=True)}
    slots = {name: kept[number] for name, number in named.items() if number in kept}
    return _left(bound, slots, {name: place[number] for name, number in named.items()}, groups, rates)


def _decoupled(groups: Sequence[Settings], adamw: bool) -> list[Settings]:
    """The groups' settings; AdamW says only since PyTorch 2.7 that its decay is no part of the gradient."""
    return [{**({"decoupled_weight_decay": True} if adamw else {}), **each} for each in groups]


def steps_counted(slots: Mapping[str, Slots]) -> int:
    """How many steps an optimiser counted; 0 where it counts none."""
    return max((int(kept["step"]) for kept in slots.values() if "step" in kept), default=0)


def _left(
    bound: BoundStage,
    slots: Mapping[str, Slots],
    group: Mapping[str, int],
    groups: Sequence[Settings],
    rates: Sequence[float] | None,
) -> Left:
    where = bound.stage.where
    missing = [name for name in bound.trained.names if plain_name(name) not in group]
    if missing:
        refuse(f"{where}: the optimiser did not train {some_names(missing)}, but the stage's model says they were")
    for name, shape in zip(bound.trained.names, bound.trained.shapes, strict=True):
        for slot, value in slots.get(plain_name(name), {}).items():
            if isinstance(value, Tensor) and value.ndim and value.shape != shape:
                refuse(
                    f"{where}: {slot} of parameter '{name}' has the shape {list(value.shape)} in the saved state, the "
                    f"parameter {list(shape)}; give the state of the optimiser that trained this stage"
                )
    return Left(slots, group, groups, _rates(where, slots, groups, rates))


def _rates(
    where: str, slots: Mapping[str, Slots], groups: Sequence[Settings], rates: Sequence[float] | None
) -> list[float]:
    """The sum of each group's rates: those given are the first group's, and the others kept in proportion."""
    first, counted = [float(each.get("initial_lr", each["lr"])) for each in groups], steps_counted(slots)
    if rates is None:
        if any("initial_lr" in each for each in groups) or not counted:
            why = "a scheduler moved its rate" if counted else "it counts no steps"
            refuse(
                f"{where}: the optimiser does not say how far it went, since {why}; give rates=[1e-3, ...], each step's"
            )
        return [rate * counted for rate in first]
    odd = [rate for rate in rates if not (isinstance(rate, Real) and 0 <= float(rate) < math.inf)]
    if odd or not len(rates):
        got = f"{odd[0]!r} among them" if odd else "none"
        refuse(f"{where}: rates must be the learning rate of each step, numbers of at least 0, got {got}")
    if counted and len(rates) > counted:
        refuse(
            f"{where}: {len(rates):,} rates were given, but the optimiser counted {counted:,} steps; give the rate of "
            "each of its steps, and no others"
        )
    total = sum(map(float, rates))
    return [total * (rate / first[0] if first[0] else 1.0) for rate in first]
