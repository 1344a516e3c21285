"""Which store a stage's examples are kept in: what was asked for, or by itself what fits its model."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.index.components import Components, drawn_count, fit_components
from stagetrace.index.gradients import ExampleGradients
from stagetrace.index.store import Held, Store, StoreKind
from stagetrace.index.words import Words, fit_words, unfit
from stagetrace.progress import Progress
from stagetrace.stages.bound import BoundStage

__all__ = ["Asked", "chosen", "fitted", "opened_store"]

Asked = Literal["auto", "components", "words"]
"""What may be asked for."""


def chosen(bound: BoundStage, gradients: ExampleGradients, asked: Asked, settings: Mapping[str, Any]) -> StoreKind:
    """The kind of a stage's store; words where they fit and nothing else was asked for.

    Raises:
        DescriptionError: it does not fit this model; says what to type.
    """
    why = None if asked == "components" else unfit(bound, gradients, settings["numbers"])
    if asked == "words" and why is not None:
        refuse(why)
    if asked != "components" and why is None:
        return "words"
    drawn_count(bound, settings)  # what does not fit in memory is refused before anything is solved
    return "components"


def fitted(
    kind: StoreKind, bound: BoundStage, gradients: ExampleGradients, settings: Mapping[str, Any], progress: Progress
) -> dict[str, Tensor]:
    """What a store is made of, as tensors.

    Raises:
        DataError: all gradients are zero, or a loss or gradient is not finite.
    """
    fit = fit_words if kind == "words" else fit_components
    return fit(bound, gradients, settings, progress)


def opened_store(kind: StoreKind, gradients: ExampleGradients, tensors: Held) -> Store:
    """The store that these tensors were fitted as."""
    return Words(gradients, tensors) if kind == "words" else Components(gradients, tensors)
