"""A recipe that was followed, and how far the library's numbers are from those of the trainer's own code."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from stagetrace import Chain, Hessian
from stagetrace.checks.directions import beside_padding
from stagetrace.objectives.objective import name_of
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import Gradient
from stagetrace.tracing.pull_back import pull_back

STEP = 1e-5
"""Of central differences, in units of a direction of length 1, in float64."""


Move = Callable[[Mapping[str, Tensor], float], None]


def moving(parameters: Mapping[str, nn.Parameter]) -> Move:
    """Moves these parameters, those that the direction has."""

    def move(direction: Mapping[str, Tensor], by: float) -> None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                if name in direction:
                    parameter.add_(direction[name], alpha=by)

    return move


@final
@dataclass(frozen=True, eq=False)
class Made:
    """A recipe as followed: float64 throughout.

    chain: its last stage is the recipe's.
    loss: the loss of one step over all of the stage's rows, by the code that trained, at the values that `model` has.
    model: the trainer's model; its parameters are those of the stage, in the same memory.
    before: moves what the trainer's code has of the stage before, along a direction by its parameters' names, so far.
    in_double: what has the trainer's code compute in float64 throughout, where it does not by itself.
    started: where the trainer's code had the stage start, by its parameters' names, at the values that the stage before
        has, where no parameter of the stage before is that start.
    scores: of a recorded training the library's scores, `ours`, and those of training again, `trained again`.
    """

    chain: Chain
    loss: Callable[[], Tensor]
    model: nn.Module
    before: Move | None = None
    in_double: Callable[[], AbstractContextManager[object]] = nullcontext
    started: Callable[[], Mapping[str, Tensor]] = dict
    scores: Callable[[], Mapping[str, Tensor]] | None = None


def measured(made: Made) -> dict[str, Any]:
    """What the library made of it, and relative differences: of the loss, of a product with the Hessian, of what is
    handed to the stage before, and of the scores of a recorded training.
    """
    scores = None if made.scores is None else made.scores()  # first: below the model moves, and is home to rounding
    bound = made.chain.last
    trained = {name: p for name, p in made.model.named_parameters() if name in set(bound.trained.names)}
    drawn = bound.trained.unflatten(_direction(bound.trained.size, 1))
    vector = bound.trained.flatten(beside_padding(drawn, bound.stage.model))  # PyTorch holds padding's row constant
    ours = float(_mean_loss(bound))
    product = Hessian(examples=None).operator(bound) @ vector.unsqueeze(1)
    product = product.squeeze(1) - bound.penalty * vector
    row = _described(bound)
    back = _handed_back(made, bound, vector)
    slope = _central(made, moving(trained), bound.trained.unflatten(vector), trained)
    found = {
        "loss": _apart(ours, float(made.loss())),
        "Hessian product": _distance(product, bound.trained.flatten(slope)),
    }
    if scores is not None:
        found["scores"] = _distance(scores["ours"], scores["trained again"])
    if back is None:
        return row | found | {"stage before": None}
    vectors, value = back
    assert made.before is not None
    mixed = _central(made, made.before, vectors, trained)
    along = sum(float((mixed[name] * bound.trained.unflatten(vector)[name]).sum()) for name in trained)
    pull = bound.trained.unflatten(bound.pull * vector)
    starts = vectors | _started(made, made.before, vectors)
    pulled = 0.0
    for name, origin in bound.anchored_to.items():
        moved = starts.get(origin if isinstance(origin, str) else name)
        pulled += 0.0 if moved is None else float((pull[name] * moved).sum())
    return row | found | {"stage before": _apart(value, pulled - along)}


def _described(bound: BoundStage) -> dict[str, Any]:
    link = "first stage" if bound.stage.link is None else type(bound.stage.link).__name__
    return {"loss of an example": name_of(bound.stage.loss), "link": link}


def _mean_loss(bound: BoundStage) -> Tensor:
    risk, total = bound.risk, torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for batch in risk.read(risk.examples.batch_indices()):
            total += risk.losses(risk.trained_values, risk.inherited_values, batch).sum()
    return total / len(risk.examples)


def _handed_back(made: Made, bound: BoundStage, adjoint: Tensor) -> tuple[dict[str, Tensor], float] | None:
    """A direction at the stage before, and the derivative along it of what `adjoint` hands back."""
    if bound.previous is None:
        return None
    previous = made.chain[bound.previous.name]
    nothing = Gradient(previous.trained.zeros(1)[:0], bound.inherited.zeros(1), bound.statistics.zeros(1))
    found = pull_back(bound, previous, adjoint.unsqueeze(1), nothing, range(len(bound.stage.examples)))
    vector = _direction(previous.trained.size, 2)
    return previous.trained.unflatten(vector), float(found.trained.squeeze(1) @ vector)


def _central(
    made: Made, move: Move, direction: Mapping[str, Tensor], of: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The derivative of the trainer's gradient along a direction, by central differences of it."""
    found = list[Sequence[Tensor]]()
    for sign in (1, -2, 1):  # there, back to the other side, and home
        move(direction, sign * STEP)
        if len(found) < 2:
            with made.in_double():
                found.append(
                    torch.autograd.grad(made.loss(), list(of.values()), allow_unused=True, materialize_grads=True)
                )
    return {name: (more - less) / (2 * STEP) for name, more, less in zip(of, found[0], found[1], strict=True)}


def _started(made: Made, move: Move, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The derivative of where the stage started, along a direction at the stage before."""
    found = list[Mapping[str, Tensor]]()
    for sign in (1, -2, 1):
        move(direction, sign * STEP)
        found.append(made.started())
    return {name: (found[0][name] - found[1][name]) / (2 * STEP) for name in found[0]}


def _direction(size: int, seed: int) -> Tensor:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


def _apart(one: float, other: float) -> float:
    return abs(one - other) / abs(other)


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())
