"""Adapters of two stages: which of one's are the other's, whatever both call them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.hf.adapters import active_adapters
from stagetrace.hf.names import Plain, plain_names

Words = dict[str, str]
"""What stands for an adapter's name in its parameters' plain names."""


def words_of(model: nn.Module, previous: nn.Module, merged: set[str]) -> tuple[Words, Words]:
    """The words for this model's active adapters and for the previous one's: the same for one and the same adapter.

    An adapter whose parameters are all equal is the same; of the others one of the same name, or the only one beside
    the only one. Adapters that were merged into this model's weights are none of its adapters.

    merged: the previous model's parameters that went into merged weights.

    Raises:
        DescriptionError: an adapter of the stage before may be each of several here.
    """
    before = [name for name in active_adapters(previous) if not (_parameters(previous, name).keys() & merged)]
    ours, theirs = list(active_adapters(model)), {name: f"*{name}" for name in before}
    found: Words = {}
    if ours and before:
        values = {name: _values(model, name) for name in ours}
        for name in before:
            wanted = _values(previous, name)
            same = [mine for mine in ours if mine not in found and _equal(values[mine], wanted)]
            if same:
                found[same[0]] = theirs[name]
        left, open_ = [n for n in before if theirs[n] not in found.values()], [n for n in ours if n not in found]
        for name in left:
            if name in open_:
                found[name] = theirs[name]
            elif len(ours) == len(before) == 1:
                found[ours[0]] = theirs[name]
        _check_found([n for n in left if theirs[n] not in found.values()], [n for n in ours if n not in found])
    gone = {name: f"-{name}" for name in active_adapters(previous)}
    return {name: found.get(name, f"+{name}") for name in ours}, gone | theirs


def _check_found(left: Sequence[str], new: Sequence[str]) -> None:
    if left and new:
        refuse(
            f"the adapter '{left[0]}' of the stage before is none of this model's by name or values, which has "
            f"{', '.join(map(repr, new))} beside; if it is one of these and was trained further, load it under its "
            f"name, model.load_adapter(folder, '{left[0]}'); if it was merged, merge it (model.merge_and_unload())"
        )


def _parameters(model: nn.Module, adapter: str) -> dict[str, Plain]:
    """The adapter's own parameters, and their plain names without its name."""
    one, other = (plain_names(model, {adapter: word}) for word in ("*", "?"))
    return {name: plain for name, plain in one.items() if plain != other[name]}


def _values(model: nn.Module, adapter: str) -> dict[Plain, Tensor]:
    return {plain: model.get_parameter(name).detach() for name, plain in _parameters(model, adapter).items()}


def _equal(ours: dict[Plain, Tensor], theirs: dict[Plain, Tensor]) -> bool:
    return (
        bool(theirs)
        and ours.keys() == theirs.keys()
        and all(
            ours[name].shape == value.shape and torch.equal(ours[name], value.to(ours[name]))
            for name, value in theirs.items()
        )
    )
