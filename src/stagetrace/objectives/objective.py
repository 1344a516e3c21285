"""The interface of a loss: outputs of the model, then one loss per example, never reduced.

The split into `outputs` and `losses` is where the Gauss-Newton matrix splits (`J' H_outputs J`); the library
owns the mean over examples, the weights and the penalties.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, final, runtime_checkable

from torch import Tensor, nn

from stagetrace.errors import DescriptionError, refuse
from stagetrace.objectives.mistaken import refuse_pytorch_s_own, refuse_signature


@runtime_checkable
class Objective(Protocol):
    """A training loss, split where the mathematics splits. Any object with these two methods is an objective.

    Example:
        >>> import torch
        >>> class AbsoluteError:
        ...     def outputs(self, model, batch):
        ...         return model(batch[0])
        ...     def losses(self, outputs, batch):
        ...         return (outputs - batch[1]).abs().sum(dim=1)
        >>> isinstance(AbsoluteError(), Objective)
        True
    """

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """What the loss is computed from: `[batch, ...]`, e.g. logits. Depends on the parameters."""
        ...

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        """One loss per example `[batch]`, not reduced. Depends on the parameters through `outputs` only."""
        ...


@runtime_checkable
class Checks(Protocol):
    """A third method of objectives that can tell valid labels from invalid ones."""

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse labels that do not fit this loss: called once for each batch that is read, before it is used.

        Called outside every derivative, on tensors that have values, on the CPU and as the data set gives them.

        Args:
            batch: as collated.
            shape: that of an example's outputs, without the batch axis.

        Raises:
            BatchError: with the place of the first such example; the library names stage and example.
        """
        ...


@runtime_checkable
class CountsLabels(Protocol):
    """A third method of objectives whose examples may have nothing to predict."""

    def labelled(self, batch: Any) -> int:
        """How many predictions of the batch count in its losses."""
        ...


@runtime_checkable
class TokenLosses(Protocol):
    """Two further methods of objectives whose losses are sums over tokens: what scores of single tokens are made of."""

    def token_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        """The losses token by token, `[batch, length]`: the sum over the length is `losses`.

        Each is divided as its example's loss divides it (a mean by the number of the example's predicted tokens).
        Entry t is the loss of predicting the token at position t, 0 where none is predicted.
        """
        ...

    def predicted(self, batch: Any) -> Tensor:
        """Which tokens these are, whole numbers `[batch, length]`: the label at position t; -100 where none is."""
        ...


PlainLoss = Callable[[nn.Module, Any], Tensor]
"""`losses(model, batch) -> Tensor[batch]`: enough for everything but the Gauss-Newton matrix."""


@final
class Plain:
    """A plain loss function as an objective whose outputs are the losses themselves.

    It has no outputs of its own, so there is no Gauss-Newton matrix for it: `splits` is False.
    """

    def __init__(self, function: PlainLoss) -> None:
        self.function = function

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return self.function(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        del batch
        return outputs


def as_objective(objective: Objective | PlainLoss, where: str) -> Objective:
    """An `Objective` as it is, a plain function wrapped, anything else refused.

    Raises:
        DescriptionError: neither an objective nor a function, or one that takes other arguments.
    """
    if isinstance(objective, type):
        refuse(f"{where}: objective is the class {objective.__name__}; write {objective.__name__}() with parentheses")
    refuse_pytorch_s_own(objective, where)
    if isinstance(objective, Objective):
        refuse_signature(objective.outputs, "outputs(model, batch)", where)
        refuse_signature(objective.losses, "losses(outputs, batch)", where)
        return objective
    if callable(objective):
        refuse_signature(objective, "losses(model, batch)", where)
        return Plain(objective)
    raise DescriptionError(
        f"{where}: objective must have outputs(model, batch) and losses(outputs, batch), or be a function "
        f"losses(model, batch) -> Tensor[batch]; got {type(objective).__name__}"
    )


def by_token(objective: Objective) -> TokenLosses:
    """The objective as one whose losses are sums over tokens.

    Raises:
        DescriptionError: it does not say what its tokens' losses are.
    """
    if not isinstance(objective, TokenLosses):
        refuse(
            f"the objective {name_of(objective)} has no losses of single tokens; give it token_losses(outputs, batch) "
            "and predicted(batch), see stagetrace.objectives.TokenLosses, or leave tokens= out"
        )
    return objective


def splits(objective: Objective) -> bool:
    """Whether the objective has outputs between the parameters and the losses (a Gauss-Newton matrix exists)."""
    return not isinstance(objective, Plain)


def name_of(objective: Objective) -> str:
    """The name of the objective, for messages and records: without the addresses of functions that it holds."""
    if isinstance(objective, Plain):
        function = objective.function
        return getattr(function, "__qualname__", type(function).__qualname__)
    text = re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", repr(objective))
    return type(objective).__qualname__ if " at 0x" in text else text


def label_names(objective: Objective | PlainLoss | None) -> tuple[str, ...]:
    """The names of the classes that an objective was given, in the order of their numbers; empty where it has none.

    Example:
        >>> from stagetrace.objectives import Classification
        >>> label_names(Classification(names=("cat", "dog")))
        ('cat', 'dog')
    """
    names = getattr(objective, "names", ())
    return tuple(names) if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else ()
