"""An optimiser's rule over all parameters of a step: small ones side by side as one, large ones some entries at a time.

A step acts on every entry alone, so that it does not matter which of them are run together. Of small tensors it is the
calls that take time; of large ones it is the new memory, more than the numbers in it, so an adjoint keeps its own.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from stagetrace.recording.optimizers import Adjoint, Rule, State
from stagetrace.recording.step import Settings
from stagetrace.stages.space import Params

AT_ONCE = 2**16
"""Entries at a time. A rule makes some twenty tensors of them."""


def pulled_back(
    rule: Rule,
    states: Mapping[str, State],
    gradient: Params,
    group: Settings,
    adjoints: dict[str, Adjoint],
    cotangents: Params,
) -> None:
    """See `Rule.pull_back`, for the parameters `states` of one group.

    adjoints: those after the step, in whose places and memory those before it are put. cotangents: where each g_bar
        `[k, *shape]` is put.
    """
    together: dict[object, list[str]] = {}
    for name, state in states.items():
        if state.value.ndim == 0:  # what is kept of its one entry and what of the whole look alike
            adjoints[name], found = rule.pull_back(state, gradient[name], group, adjoints[name])
            cotangents[name].copy_(found)
        elif state.value.numel() > AT_ONCE:
            adjoints[name] = _in_parts(rule, state, gradient[name], group, adjoints[name], cotangents[name])
        else:
            together.setdefault(_kind(state, adjoints[name]), []).append(name)
    for names in together.values():
        _side_by_side(rule, {name: states[name] for name in names}, gradient, group, adjoints, cotangents)


def _kind(state: State, after: Adjoint) -> object:
    """Parameters of one kind can be run as one: alike in what is kept of them, and in how many steps they took."""
    kept = tuple(
        (name, "entries" if _of_entries(slot, state.value) else slot if slot is None else float(slot))
        for name, slot in sorted(state.slots.items())
    )
    return state.value.dtype, kept, tuple(sorted(after.slots))


def _side_by_side(
    rule: Rule,
    states: Mapping[str, State],
    gradient: Params,
    group: Settings,
    adjoints: dict[str, Adjoint],
    cotangents: Params,
) -> None:
    first, sizes = next(iter(states)), [state.value.numel() for state in states.values()]
    slots = {
        slot: torch.cat([state.slots[slot].reshape(-1) for state in states.values()])
        if _of_entries(kept, states[first].value)
        else kept
        for slot, kept in states[first].slots.items()
    }
    value = torch.cat([state.value.reshape(-1) for state in states.values()])
    slope = torch.cat([gradient[name].reshape(-1) for name in states])
    bars = {slot: _beside(adjoints[name].slots[slot] for name in states) for slot in adjoints[first].slots}
    after = Adjoint(_beside(adjoints[name].value for name in states), bars)
    before, found = rule.pull_back(State(value, slots), slope, group, after)
    split = {slot: bar.split(sizes, dim=1) for slot, bar in before.slots.items()}
    for place, (name, value_bar, cotangent) in enumerate(
        zip(states, before.value.split(sizes, dim=1), found.split(sizes, dim=1), strict=True)
    ):
        shape = cotangents[name].shape
        cotangents[name].copy_(cotangent.view(shape))
        adjoints[name].value.copy_(value_bar.view(shape))
        adjoints[name] = Adjoint(adjoints[name].value, {s: bars[place].view(shape) for s, bars in split.items()})


def _in_parts(
    rule: Rule, state: State, gradient: Tensor, group: Settings, after: Adjoint, cotangent: Tensor
) -> Adjoint:
    size, shape = gradient.numel(), after.value.shape
    whole = {name for name, slot in state.slots.items() if _of_entries(slot, state.value)}
    slots = {name: slot.reshape(-1) if name in whole else slot for name, slot in state.slots.items()}
    bars = {name: bar.view(len(bar), size) for name, bar in after.slots.items()}
    value, slope, bar = state.value.reshape(-1), gradient.reshape(-1), after.value.view(len(after.value), size)
    out, kept = cotangent.view(len(cotangent), size), dict[str, Tensor]()
    for start in range(0, size, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        here = {name: slot[part] if name in whole else slot for name, slot in slots.items()}
        later = Adjoint(bar[:, part], {name: each[:, part] for name, each in bars.items()})
        before, out[:, part] = rule.pull_back(State(value[part], here), slope[part], group, later)
        bar[:, part] = before.value
        for name, each in before.slots.items():
            if name not in kept:
                kept[name] = bars[name] if name in bars else torch.empty_like(bar)
            kept[name][:, part] = each
    return Adjoint(after.value, {name: each.view(shape) for name, each in kept.items()})


def _beside(bars: Iterable[Tensor]) -> Tensor:
    """`[k, all entries]`."""
    return torch.cat([bar.reshape(len(bar), -1) for bar in bars], dim=1)


def _of_entries(slot: Any, value: Tensor) -> bool:
    """Whether a slot has a number for each entry, and is no count of steps."""
    return isinstance(slot, Tensor) and slot.shape == value.shape
