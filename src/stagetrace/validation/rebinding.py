"""A stage with other parameter values, or bound to other values of the stage before."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stagetrace.stages.bound import BoundStage
from stagetrace.stages.links.computed import Origin, start_of
from stagetrace.stages.revalued import with_values
from stagetrace.stages.space import Params


def values_from_previous(bound: BoundStage, previous: Mapping[str, Tensor], *, anchored: bool = False) -> Params:
    """The values that the stage takes from the stage before, by its own names: those of inherited parameters.

    anchored: also those of parameters that it trains further, where it is to start from them.
    previous: the parameters of the stage before, of one model or of several copies `[copies, *shape]`.
    """
    ours = dict(bound.stage.model.named_parameters())
    pairs = bound.inherited_from | bound.anchored_to if anchored else bound.inherited_from
    return {name: _taken(bound, origin, previous, ours[name].detach()) for name, origin in pairs.items()}


def _taken(bound: BoundStage, origin: Origin, previous: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """What a parameter started from, of one model or of several copies."""
    if isinstance(origin, str) or bound.previous is None:
        return start_of(origin, previous).to(like)
    first = origin.of[0]
    if previous[first].ndim == bound.previous.model.get_parameter(first).ndim:
        return origin.value(previous).to(like)
    copies = [{name: previous[name][place] for name in origin.of} for place in range(len(previous[first]))]
    return torch.stack([origin.value(each).to(like) for each in copies])


def with_previous(bound: BoundStage, previous: Mapping[str, Tensor] | None) -> BoundStage:
    """The stage over a copy of its model, bound to other values of the stage before; what it trained stays as it was.

    Inherited parameters have the new values; anchored ones are pulled towards them, as strongly as before.

    previous: all parameters of the stage before; None where they are unchanged.
    """
    stage = replace(bound.stage, link=bound.link)  # "auto" is estimated once, from the stage as trained
    if previous is None or bound.previous is None:
        return replace(bound, stage=stage)
    stage = with_values(stage, values_from_previous(bound, previous))
    return replace(bound, stage=stage, previous=with_values(bound.previous, previous))
