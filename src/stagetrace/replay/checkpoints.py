"""What is kept of a training that was not recorded: where it stood at some points, and its optimiser's state there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse, some_names
from stagetrace.recording.names import plain_name
from stagetrace.stages.bound import BoundStage


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One point of a training.

    state: the optimiser's `state_dict()` there; of the last checkpoint it may be the optimiser itself.
    values: the parameters, by their names (`model.state_dict()`), or a model that has them; None: those of the stage's
        model, which the last checkpoint has.
    rates: the learning rate of each step since the checkpoint before (of the optimiser's first group); None where Adam
        had no scheduler, and says itself how many steps it took.

    Raises:
        DescriptionError: it is something else.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> Checkpoint(torch.optim.SGD(model.parameters(), lr=0.1), rates=[0.1] * 50)
        Checkpoint(50 rates)
    """

    state: "torch.optim.Optimizer | Mapping[str, Any]"
    values: "Mapping[str, Tensor] | nn.Module | None" = field(default=None, kw_only=True)
    rates: Sequence[float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.state, torch.optim.Optimizer | Mapping):
            refuse(f"Checkpoint: state must be an optimiser or its state_dict(), got a {type(self.state).__name__}")
        if not (self.values is None or isinstance(self.values, Mapping | nn.Module)):
            refuse(f"Checkpoint: values must be a model or its state_dict(), got a {type(self.values).__name__}")

    def __repr__(self) -> str:
        return "Checkpoint()" if self.rates is None else f"Checkpoint({len(self.rates):,} rates)"

    def of(self, bound: BoundStage) -> Tensor:
        """The parameters that the stage trained, `[dim]` in its order.

        Raises:
            DescriptionError: one is missing, or has another shape.
        """
        given = self.values.state_dict() if isinstance(self.values, nn.Module) else self.values
        if given is None:
            return bound.trained.flatten(bound.trained_values).detach()
        values = {plain_name(name): value.detach() for name, value in given.items()}
        wrong = [
            name
            for name, shape in zip(bound.trained.names, bound.trained.shapes, strict=True)
            if plain_name(name) not in values or values[plain_name(name)].shape != shape
        ]
        if wrong:
            refuse(
                f"{bound.stage.where}: a checkpoint has no {some_names(wrong)} of the stage's shapes; give the "
                "checkpoints of the training that led to the stage's model"
            )
        like = next(iter(bound.trained_values.values()))
        return bound.trained.flatten({name: values[plain_name(name)].to(like) for name in bound.trained.names})


def in_order(bound: BoundStage, checkpoints: Sequence[Checkpoint]) -> Sequence[Checkpoint]:
    """The checkpoints of a stage, the last of them at its model.

    Raises:
        DescriptionError: there is none, one before the last has no values, or the last one has others than the model.
    """
    where = bound.stage.where
    if not checkpoints:
        refuse(f"{where}: there is no checkpoint; give one at least, Checkpoint(optimizer)")
    if any(each.values is None for each in checkpoints[:-1]):
        refuse(
            f"{where}: a checkpoint before the last has no values; give Checkpoint(state, values=model.state_dict())"
        )
    here = bound.trained.flatten(bound.trained_values).detach()
    gap = float((checkpoints[-1].of(bound) - here).abs().max())
    if gap:
        refuse(
            f"{where}: the last checkpoint is not where the stage's model is (parameters differ by up to {gap:.3g}); "
            "give the checkpoints up to the stage's model, the first one first"
        )
    return checkpoints
