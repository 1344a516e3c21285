"""Stages trained by a plain PyTorch loop: one copy, one batch, one `optimizer.step()` after the other.

Nothing here comes from the library but the records of `chains.py`.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.chains import ChainCase, StageCase
from tests.oracles import Point, held_names, losses, own_names, previous_names, query_losses, solved


@dataclass(frozen=True)
class Plain:
    """An optimiser of `torch.optim` with its settings, and how long it runs; state: a `state_dict()` to go on from."""

    optimiser: str
    settings: Mapping[str, Any]
    steps: int
    batch: int
    cosine: bool = False
    cold: bool = False
    state: Mapping[str, Any] | None = None


def batches(n: int, size: int, steps: int, seed: int) -> list[list[int]]:
    """Epoch after epoch in an order of its own, all drawn by one generator."""
    generator, found = torch.Generator().manual_seed(seed), list[list[int]]()
    while len(found) < steps:
        order = torch.randperm(n, generator=generator).tolist()
        found += [order[start : start + size] for start in range(0, n, size)]
    return found[:steps]


def trained(
    stage: StageCase, point: Point, weights: Tensor, previous: Point, how: Plain, seed: int, drop: Sequence[int] = ()
) -> Point:
    """The stage's parameters after the loop, from `point`, what it shares from `previous`, towards which a link pulls
    whose penalty is in the training loss.

    drop: examples that are taken out of every batch before the model sees it; the divisor stays.
    """
    model = stage.make()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(point[name])
        if how.cold:
            torch.manual_seed(seed)
            for name, module in model.named_modules():
                inside = {f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)}
                if inside & set(own_names(stage)) - set(previous_names(stage)):
                    module.reset_parameters()
        stays = held_names(stage) if stage.link and stage.link.in_loss and not how.cold else {}
        for here, there in previous_names(stage).items():
            if previous and here not in stays:
                parameters[here].copy_(previous[there])
    own = [parameters[name] for name in own_names(stage)]
    optimiser = getattr(torch.optim, how.optimiser)(own, **how.settings)
    if how.state is not None:
        optimiser.load_state_dict(copy.deepcopy(dict(how.state)))
        for group in optimiser.param_groups:
            group.update(how.settings)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.steps) if how.cosine else None
    for batch in batches(len(stage.x), how.batch, how.steps, seed):
        seen = [index for index in batch if index not in drop]
        optimiser.zero_grad()
        loss = (weights[seen] * losses(stage, parameters, stage.x[seen], stage.y[seen])).sum() / len(batch)
        for here, there in held_names(stage).items() if stage.link and stage.link.in_loss else ():
            away = parameters[here] - previous[there]
            loss = loss + (stage.link.strengths(away.shape) * away.square()).sum()
        (loss + stage.weight_decay / 2 * sum(value.square().sum() for value in own)).backward()
        optimiser.step()
        if schedule is not None:
            schedule.step()
    return {name: value.detach().clone() for name, value in parameters.items()}


def query_after(case: ChainCase, position: int, removed: Sequence[int], by: float, how: Plain, seed: int) -> Tensor:
    """The query losses `[q]` after that stage is trained without `by` of the examples, and every later one with all.

    A warm start of that stage itself is where it ended, not where the one before it ended.
    """
    points = solved(case)
    previous = points[position - 1] if position and how.cold else {}
    for later in range(position, len(case.stages)):
        stage = case.stages[later]
        weights = torch.ones(len(stage.x), dtype=torch.float64)
        if later == position:
            weights[list(removed)] -= by
        previous = trained(stage, points[later], weights, previous, how, seed)
    return query_losses(case, previous)
