"""Training by a function of the user's."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace.errors import DescriptionError, refuse
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.links.computed import sources_of, start_of
from stagetrace.stages.revalued import with_values
from stagetrace.stages.space import Params
from stagetrace.validation.fits.fit import Copies, Fit, one_copy, stacked


@final
@dataclass(frozen=True)
class CustomTraining(Fit):
    """`fit(weights) -> model`, one copy after the other.

    function: takes `weights` `[n]` (float64, CPU; 0 leaves an example out), and returns the trained module, of the
        stage's architecture. A parameter `previous` receives the module of the stage before, trained again with the
        same weights (None for the first stage); later stages must have it. A parameter `seed` receives the seed of the
        run. The same seed must give the same order and the same initial values whatever the weights, or the comparison
        with the control is not paired.
    """

    function: Callable[..., nn.Module]
    is_stochastic: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_stochastic", "seed" in self._names())

    def __call__(self, bound: BoundStage, weights: Tensor, previous: Copies | None, seed: int) -> Copies:
        names = self._names()
        self.check(bound, follows=previous is not None)
        return stacked([self._one(bound, weights, previous, seed, place, names) for place in range(len(weights))])

    def check(self, bound: BoundStage, *, follows: bool) -> None:
        """Refuse a function that cannot take the stage before, trained again: one without a parameter `previous`."""
        if follows and "previous" not in self._names():
            refuse(
                f"{bound.stage.where}: its fit must take the stage before, trained again: "
                "def fit(weights, previous): ..."
            )

    def _one(
        self, bound: BoundStage, weights: Tensor, previous: Copies | None, seed: int, place: int, names: set[str]
    ) -> dict[str, Tensor]:
        given: dict[str, Any] = {}
        taken = {} if previous is None else one_copy(previous, place)
        if "previous" in names:  # always a copy: the function may train it further
            given["previous"] = bound.previous and with_values(bound.previous, taken).model
        if "seed" in names:
            given["seed"] = seed
        model = self.function(weights[place].double().cpu().clone(), **given)
        if not isinstance(model, nn.Module):
            refuse(f"{bound.stage.where}: fit must return the trained module, got {type(model).__name__}")
        found = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }  # the function may return the same module again
        expected = dict(bound.stage.model.named_parameters())
        for name, parameter in expected.items():
            if name not in found or found[name].shape != parameter.shape:
                raise DescriptionError(
                    f"{bound.stage.where}: the module that fit returned has no parameter '{name}' of shape "
                    f"{list(parameter.shape)}; return a module of the stage's architecture"
                )
        values = {name: found[name].to(parameter.detach()) for name, parameter in expected.items()}
        _check_inherited(bound, values, taken)
        return values

    def _names(self) -> set[str]:
        try:
            return set(inspect.signature(self.function).parameters)
        except (TypeError, ValueError) as cause:
            refuse(f"fit must be a function fit(weights) -> model, got {type(self.function).__name__} ({cause})")


def _check_inherited(bound: BoundStage, values: Params, taken: Params) -> None:
    """Inherited parameters must be those of the stage before; else the effect would not pass through them."""
    for name, origin in bound.inherited_from.items():
        expected = start_of(origin, taken) if sources_of([origin]) <= taken.keys() else bound.inherited_values[name]
        if torch.equal(values[name], expected.to(values[name])):
            continue
        if isinstance(origin, str):
            said = f"the stage before, trained again, has in '{origin}'"
        elif taken and origin.agrees(values[name], taken):
            continue
        else:
            said = f"{origin} of the stage before, trained again, comes to"
        refuse(
            f"{bound.stage.where}: the module that fit returned has another '{name}' than {said}, though its link "
            "keeps it; load it from previous, and do not train it"
        )


def as_fit(given: Any) -> Fit:
    """A fit as it is, a function wrapped.

    Raises:
        DescriptionError: neither.
    """
    if isinstance(given, Fit):
        if not hasattr(given, "is_stochastic"):
            refuse(
                f"{type(given).__name__} must say whether a seed changes its outcome: is_stochastic = True (was: draws)"
            )
        return given
    if callable(given):
        return CustomTraining(given)  # pyright: ignore[reportArgumentType]
    refuse(
        f"a fit must be Rerun(), Resolve(), Steps(...) or a function fit(weights) -> model, got {type(given).__name__}"
    )
