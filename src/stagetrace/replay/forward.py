"""Forwards: from a kept state, step by step, to the next one, which must come out as recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.errors import DataError
from stagetrace.recording.optimizers import State as ParameterState
from stagetrace.recording.optimizers import class_named
from stagetrace.recording.recorded import Recorded
from stagetrace.recording.step import State, Step
from stagetrace.stages.space import Params


@final
@dataclass(frozen=True, eq=False)
class Point:
    """Where the replay stood before a step.

    slots: of each parameter, as the optimiser held them. average: the moving average of parameters, if there is one.
    """

    values: Params
    buffers: Params
    slots: Mapping[str, Mapping[str, Any]]
    average: Params = field(default_factory=dict)

    @staticmethod
    def of(state: State, like: Params) -> "Point":
        """A kept state of the parameters `like`, on their device.

        An optimiser may hold parameters that it never moves: what a stage kept is not taken from here.
        """
        device = next(iter(like.values())).device

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) and value.ndim else value

        return Point(
            {name: value.to(device) for name, value in state.values.items() if name in like},
            {name: buffer.to(device) for name, buffer in state.buffers.items()},
            {name: {slot: moved(v) for slot, v in slots.items()} for name, slots in state.slots.items()},
            {name: value.to(device) for name, value in state.average.items() if name in like},
        )

    @property
    def size(self) -> int:
        """Bytes of the point and of those after it: moments that are still to come are counted."""
        slots = sum(_bytes(v) for held in self.slots.values() for v in held.values())
        values = sum(map(_bytes, self.values.values()))
        others = sum(map(_bytes, (*self.buffers.values(), *self.average.values())))
        return max(1, values + max(slots, 2 * values) + others)

    def left(self, *, averaged: bool) -> Params:
        """What a training that ended here leaves: its parameters, or their average."""
        return self.average if averaged else self.values

    def parameter(self, name: str) -> ParameterState:
        """One parameter before the step."""
        return ParameterState(self.values[name], self.slots.get(name, {}))


def stepped(recorded: Recorded, point: Point, step: Step, gradient: Params, buffers: Params) -> Point:
    """The point after a step, by the very class that trained.

    gradient: as clipped; a parameter without one rests. buffers: after the step's forward passes.

    Raises:
        DataError: the optimiser had other parameter groups in this step than at the start.
    """
    if len(step.groups) != len(recorded.groups):
        raise DataError(
            f"{recorded.folder}: the optimiser had {len(step.groups)} parameter groups in one step and "
            f"{len(recorded.groups)} at the start (add_param_group midway); record each part of such a training into a "
            "folder of its own, as a stage of its own"
        )
    leaves = {name: value.detach().clone().requires_grad_() for name, value in point.values.items()}
    kind = class_named(recorded.optimizer, str(recorded.folder))
    known = [[leaves[name] for name in names if name in leaves] for names in recorded.groups]
    optimizer = kind([{"params": params, "lr": _rate(group)} for params, group in zip(known, step.groups, strict=True)])
    for group, settings in zip(optimizer.param_groups, step.groups, strict=True):
        group.update({name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()})
    for name, leaf in leaves.items():
        leaf.grad = gradient.get(name)
        if name in point.slots:
            optimizer.state[leaf] = {
                slot: v.clone() if isinstance(v, Tensor) else v for slot, v in point.slots[name].items()
            }
    optimizer.step()
    slots = {name: dict(optimizer.state[leaf]) for name, leaf in leaves.items() if leaf in optimizer.state}
    values = {name: leaf.detach() for name, leaf in leaves.items()}
    return Point(values, buffers, slots, _averaged(point.average, values, step.average))


def _averaged(average: Params, values: Params, d: float | None) -> Params:
    """The average after an update, `d a + (1 - d) values`; as it was where there was none."""
    if d is None:
        return average
    return {name: torch.lerp(then, values[name], 1 - d) for name, then in average.items()}


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _rate(settings: Mapping[str, Any]) -> float:
    return float(settings.get("lr", 1e-3))
