"""What all ways of training a stage again share: several copies at once, each with its own example weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from stagetrace.recording.recorded import Recorded
from stagetrace.results.jsonable import JSON
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.identity import Identity
from stagetrace.stages.space import Params
from stagetrace.validation.rebinding import values_from_previous

Copies = Params
"""The parameters of several copies of one model, by name: `[copies, *shape]` each."""


class Fit(ABC):
    """Trains a stage again.

    is_stochastic: whether a seed changes the outcome; if not, one run is enough.
    """

    is_stochastic: bool

    def check(self, bound: BoundStage, *, follows: bool) -> None:  # noqa: B027  (most have nothing to refuse)
        """Refuse a stage that cannot be trained again so, before anything is trained; by default none.

        follows: whether the stage before is trained again, too.

        Raises:
            DescriptionError: with what is missing.
        """

    def prepare(self, bound: BoundStage) -> None:  # noqa: B027
        """Compute what all copies of a stage have in common, before processes share the work; by default nothing."""

    @abstractmethod
    def __call__(self, bound: BoundStage, weights: Tensor, previous: Copies | None, seed: int) -> Copies:
        """Train copies of a stage, each with its own example weights; the stage itself stays as it is.

        bound: the stage at its place in the chain, as trained.
        weights: `[copies, n]`; weight 0 removes an example; n stays the same.
        previous: the copies of the stage before, `[copies, *shape]` by its parameters' names; None for the first.
        seed: of the order of the batches and, from a cold start, of the initial values.

        Returns:
            All parameters of the copies; also those of the buffers that are not what they are in the stage's model.
        """


def all_values(bound: BoundStage) -> Params:
    """Every parameter of the stage as trained, detached."""
    return {name: parameter.detach() for name, parameter in bound.stage.model.named_parameters()}


def expanded(values: Params, copies: int) -> Copies:
    """The same values for each copy, `[copies, *shape]`, without copying."""
    return {name: value.expand(copies, *value.shape) for name, value in values.items()}


def starting_values(bound: BoundStage, copies: int, previous: Copies | None, *, anchored: bool = True) -> Copies:
    """The stage as trained, for each copy with its inherited parameters as in its own copy of the stage before.

    anchored: also those that it trains further.
    """
    values = expanded(all_values(bound), copies)
    return values if previous is None else values | values_from_previous(bound, previous, anchored=anchored)


def one_copy(copies: Copies, place: int) -> Params:
    """The parameters of one copy."""
    return {name: value[place] for name, value in copies.items()}


def stacked(values: list[Params]) -> Copies:
    """Several copies' parameters as one."""
    return {name: torch.stack([each[name].detach() for each in values]) for name in values[0]}


def described(value: object) -> JSON:
    """A fit's settings as plain values; a recording, a saved optimiser state and functions as digests."""
    if isinstance(value, Recorded):
        return f"sha256 {value.digest[:16]}"
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
