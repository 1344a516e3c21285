"""What every way of training a stage again has in common: several copies at once, each with its own weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

import torch
from torch import Tensor

from stagetrace.results.jsonable import JSON
from stagetrace.stages.identity import Identity
from stagetrace.stages.links import Proximal
from stagetrace.stages.problem import Problem
from stagetrace.stages.space import Params
from stagetrace.validation.resolve import with_values

Copies = Params
"""The parameters of several copies of one model, by name: `[copies, *shape]` each."""


class Fit(ABC):
    """Trains a stage again.

    draws: whether a seed changes the outcome; where not, one run says all.
    """

    draws: bool

    @abstractmethod
    def __call__(self, problem: Problem, weights: Tensor, before: Copies | None, seed: int) -> Copies:
        """Train copies of a stage, each with its own example weights; the stage itself stays as it is.

        problem: the stage at its place in the chain, as trained.
        weights: `[copies, n]`; weight 0 removes an example, with n kept.
        before: the copies of the stage before, `[copies, *shape]` by its parameters' names; None for the first.
        seed: of the order of the batches and, from a cold start, of the initial values.

        Returns:
            All parameters of the copies.
        """


def all_values(problem: Problem) -> Params:
    """Every parameter of the stage as trained, detached."""
    return {name: parameter.detach() for name, parameter in problem.stage.model.named_parameters()}


def expanded(values: Params, copies: int) -> Copies:
    """The same values for each copy, `[copies, *shape]`, without copying."""
    return {name: value.expand(copies, *value.shape) for name, value in values.items()}


def handed_on(problem: Problem, copies: int, before: Copies | None) -> Copies:
    """The stage as trained, for each copy with what it kept or moved of its own copy of the stage before."""
    values = expanded(all_values(problem), copies)
    if before is not None:
        shared = {**problem.kept, **problem.moved}
        values.update({name: before[other].to(values[name]) for name, other in shared.items()})
    return values


def one_copy(copies: Copies, place: int) -> Params:
    """The parameters of one copy."""
    return {name: value[place] for name, value in copies.items()}


def stacked(values: list[Params]) -> Copies:
    """Several copies' parameters as one."""
    return {name: torch.stack([each[name].detach() for each in values]) for name in values[0]}


def rebound(problem: Problem, before: Params | None) -> Problem:
    """The problem after a stage with other values: kept ones taken over, the pull as strong; it starts where it was."""
    if before is None or problem.previous is None:
        return problem
    stage = with_values(problem.stage, {name: before[other] for name, other in problem.kept.items()})
    if isinstance(stage.link, Proximal):
        stage = replace(stage, link=replace(stage.link, alpha=problem.alpha))
    return replace(problem, stage=stage, previous=with_values(problem.previous, before))


def described(value: object) -> JSON:
    """A fit's settings as plain values; a saved optimiser state and functions as digests."""
    if isinstance(value, bool | int | float | str | type(None)):
        return value
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, Mapping):
        return f"sha256 {Identity().of(value)['sha256'][:16]}"
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in fields(value) if not f.name.startswith("_")}
        return {"name": type(value).__qualname__, **{key: described(item) for key, item in named.items()}}
    name, found = getattr(value, "__qualname__", type(value).__qualname__), Identity().of(value)
    return {"name": name, **found} if "unidentified" in found else f"{name} ({found['sha256'][:16]})"
