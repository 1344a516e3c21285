"""What a link is: how a stage started from the one before it, and what pulled its shared parameters back there."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from stagetrace.errors import refuse, some_names
from stagetrace.stages.links.computed import Computed
from stagetrace.stages.links.names import Shared, checked_pairs, computed_of
from stagetrace.stages.space import Params


@final
@dataclass(frozen=True, eq=False)
class Anchored:
    """The shared parameters W that a stage trained further, and the values W' that they started from.

    where: how messages name the stage.
    values: W; start: W'. Both under this stage's names; copies, which are the link's own.
    gradient: computes `dF/dW` at the stage's outcome, with F the mean loss and the weight decay, without the pull.
    """

    where: str
    values: Params
    start: Params
    gradient: Callable[[], Params]

    @property
    def displacement(self) -> Params:
        """`W - W'`."""
        return {name: value - self.start[name] for name, value in self.values.items()}


@dataclass(frozen=True)
class Link(ABC):
    """How a stage started from the one before it; subclass it to describe another way than `Frozen` and `Proximal`.

    A stage with this link minimised, over the parameters that it trained,

        F(W, Theta) + sum_j a_j (W_j - W'_j)^2,    F = mean loss + weight_decay / 2 |W, Theta|^2.

    W are the shared parameters that it trained further, W' their values at the previous stage, Theta is the rest, and
    `a = strength`. There is no half before the sum. Whatever is computed from the penalty follows from the strengths,
    so that no two of these can disagree: its gradient `2 a (W - W')`, its part `2 a` in the curvature, and
    `dq/dW' = 2 a lambda_W` in the backward pass (Chen et al. 2020, eq. 15, where `a = alpha` for every entry).

    A subclass is a frozen dataclass; its fields are its settings. They are part of what identifies a run.

    Args:
        shared: which parameters are shared: `{this stage's name or prefix: previous stage's}`, or names alike on both
            sides. `""` is every parameter. Of one that started from a function of several, `{name: Computed(...)}`.

    Raises:
        DescriptionError: `shared` is no name, no list and no mapping of names.

    Example:
        A pull that is twice as strong on weights as on biases; `docs/own-link.md` has one with a strength per entry.

        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class ByKind(Link):
        ...     alpha: float = 0.01
        ...     def strength(self, anchored):
        ...         return {name: self.alpha / 2 if name.endswith("bias") else self.alpha for name in anchored.values}
        >>> ByKind("encoder", alpha=0.1)
        ByKind(shared='encoder', alpha=0.1)
    """

    shared: Shared

    keeps_shared: ClassVar[bool] = False
    """Whether the stage kept all it shares, running statistics included. If not, it trained further those shared
    parameters that require a gradient, and kept the others."""

    in_training_loss: ClassVar[bool] = True
    """Whether training by optimiser steps had the penalty in its loss, so that `validation.Steps` adds it too. False
    where the penalty only stands for how few steps were taken."""

    @property
    def recording(self) -> Any:
        """The recorded training that the stage is differentiated through, None where it is taken to be at a minimum."""
        return None

    @property
    def memory(self) -> int:
        """Of a recorded training: bytes for the states between two that were kept, while its steps run backwards."""
        return 2 * 2**30

    def __post_init__(self) -> None:
        self.pairs  # noqa: B018  (checked on construction)

    @property
    def pairs(self) -> dict[str, str]:
        """`{this stage's name or prefix: previous stage's}`, of what was not `computed`."""
        return checked_pairs(type(self).__name__, self.shared)

    @property
    def computed(self) -> dict[str, Computed]:
        """`{this stage's parameter: what it was computed from}`, where that is no single parameter."""
        return computed_of(self.shared)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields beside `shared`, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "shared"}

    @abstractmethod
    def strength(self, anchored: Anchored) -> Mapping[str, float | Tensor]:
        """The strengths `a` of the pull, at least 0, in loss units per squared parameter unit.

        Returns:
            By the name of each parameter in `anchored.values` (others are ignored): a number, or a tensor of one per
            entry (or of any shape that broadcasts to the parameter's).
        """

    def resolved(self, anchored: Anchored) -> Self:
        """The link with every setting that is to be estimated from the stage as the number that it comes to.

        Called once for each stage; retraining keeps what was estimated.

        Raises:
            DescriptionError: there is no estimate.
        """
        del anchored
        return self


def pull_of(link: Link, anchored: Anchored, dtype: torch.dtype) -> Params:
    """The second derivative `2 a` of a link's penalty, `[*shape]` by the name of each anchored parameter.

    Raises:
        DescriptionError: a strength is missing, negative or not finite, or does not fit its parameter.
    """
    given, kind = link.strength(anchored), type(link).__name__
    missing = [name for name in anchored.values if not isinstance(given, Mapping) or name not in given]
    if missing:
        got = type(given).__name__
        if isinstance(given, Mapping):
            got = f"one with {some_names(map(str, given))}" if given else "an empty mapping"
        refuse(
            f"{anchored.where}: {kind}.strength must return a mapping with an entry for {some_names(missing)}, got "
            f"{got}; give 0.0 where nothing pulls"
        )
    pull = Params()
    for name, value in anchored.values.items():
        doubled = _doubled(given[name], value.shape, dtype, f"{anchored.where}: {kind}.strength of '{name}'")
        pull[name] = doubled.to(value.device).expand_as(value)
    return pull


def _doubled(given: float | Tensor, shape: torch.Size, dtype: torch.dtype, where: str) -> Tensor:
    """`2 a` of one parameter's entries, in its dtype; of a shape that broadcasts to the parameter's.

    Doubled in float64: integers and narrow dtypes would wrap around or overflow.
    """
    tensor = isinstance(given, Tensor)
    number = isinstance(given, Real) and not isinstance(given, bool)
    if not (number or (tensor and not given.is_complex() and given.dtype != torch.bool)):
        got = str(given.dtype) if tensor else type(given).__name__
        refuse(f"{where} is {got}; give a real number, or a tensor of one for each entry")
    strengths = given.detach().cpu().double() if tensor else torch.tensor(float(given), dtype=torch.float64)
    if not _fits(strengths.shape, shape):
        refuse(
            f"{where} has the shape {list(strengths.shape)}, but the parameter has {list(shape)}; give a number, or "
            "one for each entry"
        )
    if not bool((torch.isfinite(strengths) & (strengths >= 0)).all()):
        refuse(
            f"{where} has entries that are negative or not finite, from {float(strengths.min()):.3g} to "
            f"{float(strengths.max()):.3g}; give numbers of at least 0"
        )
    doubled = (2 * strengths).to(dtype)
    if not bool(torch.isfinite(doubled).all()):
        refuse(f"{where} goes up to {float(strengths.max()):.3g}, beyond {dtype}; give smaller numbers")
    return doubled


def _fits(shape: Sequence[int], parameter: Sequence[int]) -> bool:
    ends = zip(reversed(shape), reversed(parameter), strict=False)
    return len(shape) <= len(parameter) and all(one in (1, other) for one, other in ends)
