"""What a recorded training did to a model's buffers: running statistics are followed, all others must have rested."""

from collections.abc import Iterable

import torch
from torch import Tensor

from stagetrace.errors import refuse, some_names
from stagetrace.recording.names import plain_name
from stagetrace.recording.step import State
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.space import Params


def check_buffers(bound: BoundStage, start: State, end: State) -> None:
    """Hold the buffers of a recording's start and end against each other, and against the stage's model.

    Raises:
        DescriptionError: a buffer moved that is not followed, and whatever the model computes from it has a derivative
            that looks right and is wrong; or the model's running statistics are not those that training left.
    """
    followed = {plain_name(name): value for name, value in bound.statistics_values.items()}
    others = {name: v for name, v in start.buffers.items() if v.is_floating_point() and name not in followed}
    moved = layers_of(name for name, value in others.items() if not _same(value, end.buffers.get(name)))
    if moved:
        layers = {plain_name(name): type(module).__name__ for name, module in bound.stage.model.named_modules()}
        kinds = sorted({layers[name] for name in moved if name in layers})
        refuse(
            f"{bound.stage.where}: the recorded training moved buffers of {some_names(moved)} ({', '.join(kinds)}), "
            "which makes them functions of the parameters; this is followed for nn.BatchNorm1d, 2d and 3d only. Train "
            "with these layers in eval mode or without running statistics, with one of those or nn.GroupNorm in their "
            "place, or describe the stage without its recording"
        )
    left = layers_of(name for name, value in followed.items() if not _same(value, end.buffers.get(name)))
    if left:
        refuse(
            f"{bound.stage.where}: the running statistics of {some_names(left)} are not those in which the recording "
            "ended, so the model is not what that training made; give the model as the training left it (forward "
            "passes in training mode after the last step move them: call model.eval() before evaluating, and let the "
            "last batches that are accumulated lead to a step)"
        )


def taken_over(bound: BoundStage, start: Params) -> set[str]:
    """The running statistics that training began with as the stage before had left them.

    start: the buffers at the recording's start.
    """
    if bound.previous is None:
        return set()
    theirs = dict(bound.previous.model.named_buffers())
    shared = bound.shared_statistics
    return {name for name, other in shared.items() if _same(start[plain_name(name)], theirs[other])}


def notes(bound: BoundStage, start: Params, mixed: Iterable[str]) -> list[str]:
    """What a user should know of a recorded training in which batches were normalised.

    start: the buffers at the recording's start. mixed: the layers that normalised by their batch.
    """
    found = list[str]()
    layers = sorted(mixed)
    if layers:
        found.append(
            f"{some_names(layers, 3)} normalised by the batch: an example's score is of its loss alone; what it did to "
            "the batch's mean and variance stays as it was"
        )
    anew = layers_of(set(bound.shared_statistics) - taken_over(bound, start))
    if anew and bound.previous is not None:
        found.append(
            f"the running statistics of {some_names(anew, 3)} began at other values than '{bound.previous.name}' left"
        )
    return found


def layers_of(names: Iterable[str]) -> list[str]:
    """The layers that have these buffers."""
    return sorted({name.rpartition(".")[0] for name in names})


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(one.cpu(), other.detach().cpu().to(one.dtype))
