"""What goes into the reverse of an optimiser's step and what comes out: `State`, `Adjoint` and the protocol `Rule`.

A step maps the parameter and the optimiser's slots, with the gradient of the batch, to new ones:

    (value', slots') = step(value, slots, g),    g = d loss(value) / d value.

A bar is the derivative of a query q by what it stands over. Given the bars after the step, a rule finds

    value_bar = (d step / d value)^T (value'_bar, slots'_bar)    with g held fixed,
    slots_bar = (d step / d slots)^T (value'_bar, slots'_bar),
    g_bar     = (d step / d g)^T     (value'_bar, slots'_bar).

The whole derivative by the value is `value_bar + H g_bar`, with H the Hessian of the batch's loss: the caller's part.
Steps act on every entry alone, so a rule needs no product of matrices and no memory beyond a few tensors of the size
of its arguments.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from stagetrace.errors import refuse


@dataclass(frozen=True, eq=False)
class State:
    """One parameter before a step.

    value: the parameter, `[*shape]`.
    slots: `optimizer.state[parameter]` as it was, tensors and numbers; empty before the first step.
    """

    value: Tensor
    slots: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, eq=False)
class Adjoint:
    """The derivative of k queries by one parameter and its slots.

    value: dq/d(value), `[k, *shape]`.
    slots: dq/d(slot), `[k, *shape]`, by name out of `Rule.slots`. A name that is absent stands for zeros: the adjoint
        at the end of a run, where the queries see parameters only, is `Adjoint(value)`.
    """

    value: Tensor
    slots: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def plus(self, name: str, term: Tensor) -> Tensor:
        """dq/d(slot) with one more path to the queries."""
        return self.slots[name] + term if name in self.slots else term


class Rule(Protocol):
    """How one class of optimisers steps, run backwards."""

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots through which a derivative can flow."""
        ...

    def check(self, group: Mapping[str, Any], where: str) -> None:
        """Refuse settings of a parameter group that the rule does not know.

        where: what the message starts with.

        Raises:
            DescriptionError: an option of the optimiser changes the step in a way this rule does not follow.
        """
        ...

    def pull_back(
        self, state: State, gradient: Tensor, group: Mapping[str, Any], after: Adjoint
    ) -> tuple[Adjoint, Tensor]:
        """The adjoint before the step, without the path through the batch's gradient, and g_bar `[k, *shape]`.

        gradient: what `optimizer.step()` found in `.grad`, clipped already, `[*shape]`.
        group: the parameter group as that step used it: `lr`, `betas`, `eps`, `weight_decay`, ...
        after: the adjoint after the step. Nothing is written to it, but what passes unchanged is handed on uncopied.

        Slots that the step itself made (the first step of a parameter) may be left out of the adjoint before it.

        Raises:
            DescriptionError: values in another precision than float32 and float64, a sparse gradient.
        """
        ...


def require_dense(values: Tensor, what: str = "the parameter") -> None:
    """Refuse what no rule can follow: low precision, complex numbers, sparse layouts."""
    if values.layout != torch.strided:
        refuse(
            f"{what} is sparse ({values.layout}), and no adjoint of a sparse step is written: "
            "make the layer with nn.Embedding(..., sparse=False)"
        )
    if values.dtype not in (torch.float32, torch.float64):
        refuse(
            f"{what} is {values.dtype}: rounding to so few digits at every step hides the derivative; keep the "
            "parameters in float32 and compute the loss under torch.autocast instead"
        )
