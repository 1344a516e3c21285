"""The link from a stage to the one before it, found from names and values."""

import copy
from collections.abc import Collection
from typing import Any, Literal

from torch import nn

from stagetrace.errors import DescriptionError, refuse
from stagetrace.hf.sharing import shared
from stagetrace.stages.links import Frozen, Link, Proximal
from stagetrace.stages.stage import Stage


def link_to(
    model: nn.Module, after: Stage, link: Link | None, alpha: float | Literal["auto"], where: str
) -> tuple[nn.Module, Link]:
    """The link, and the model with what it kept marked as kept.

    All shared values unchanged: `Frozen`. Otherwise `Proximal`, and the unchanged tensors require no gradient: a tensor
    that training does not change at all was not trained.

    Raises:
        DescriptionError: nothing is shared.
    """
    if not isinstance(after, Stage):
        refuse(f"{where}: after= must be a Stage, the one this stage started from, got {type(after).__name__}")
    if link is not None:
        return model, link
    try:
        found = shared(model, after)
    except DescriptionError as cause:
        refuse(f"{where}: {cause}")
    pairs = dict(found)  # a plain dict: a run is recognised by how its links read
    if not found.moved:
        return model, Frozen(pairs)
    return _without_gradient(model, found.kept), Proximal(pairs, alpha)


def _without_gradient(model: nn.Module, names: Collection[str]) -> nn.Module:
    """A copy of the model that shares its memory, in which the named parameters require no gradient."""
    if not any(parameter.requires_grad for name, parameter in model.named_parameters() if name in names):
        return model
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad and name not in names)
        for name, parameter in model.named_parameters()
    }
    return copy.deepcopy(model, memo)
