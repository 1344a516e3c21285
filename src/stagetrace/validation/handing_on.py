"""Handing a stage that was trained again on to the stage after it."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stagetrace.stages.problem import Problem
from stagetrace.stages.space import Params
from stagetrace.stages.stage import Stage


def with_values(stage: Stage, values: Mapping[str, Tensor]) -> Stage:
    """The stage over a copy of its model in which the named parameters have these values."""
    model = copy.deepcopy(stage.model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    return replace(stage, model=model)


def taken_over(problem: Problem, before: Mapping[str, Tensor], *, moved: bool = False) -> Params:
    """What the stage takes over of the stage before, by its own names: what it kept, and what it moved if it is to
    start there.

    before: the parameters of the stage before, of one model or of several copies `[copies, *shape]`.
    """
    ours = dict(problem.stage.model.named_parameters())
    pairs = problem.kept | problem.moved if moved else problem.kept
    return {name: before[other].detach().to(ours[name].detach()) for name, other in pairs.items()}


def with_previous(problem: Problem, before: Mapping[str, Tensor] | None) -> Problem:
    """The stage over a copy of its model, after other values of the stage before; what it trained stays where it was.

    It has the new values in what it kept, and is pulled towards them in what it moved, as strongly as before.

    before: all parameters of the stage before; None where they are what they were.
    """
    stage = replace(problem.stage, link=problem.link)  # "auto" is estimated once, from the stage as trained
    if before is None or problem.previous is None:
        return replace(problem, stage=stage)
    stage = with_values(stage, taken_over(problem, before))
    return replace(problem, stage=stage, previous=with_values(problem.previous, before))
