"""Whether a recording is that of a stage, and where it fits in a chain."""

from dataclasses import replace

import torch
from torch import Tensor

from stagetrace.errors import refuse, some_names
from stagetrace.objectives.reference import is_of_reference
from stagetrace.recording.names import plain_name
from stagetrace.recording.recorded import Recorded
from stagetrace.recording.recording import constants_digest
from stagetrace.replay.statistics import check_buffers
from stagetrace.replay.training import check_weights
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.links.computed import Origin, gap, start_of
from stagetrace.stages.space import Params


def fitting(bound: BoundStage, recorded: Recorded) -> Recorded:
    """The recording up to the state that the stage's model is in.

    Raises:
        DescriptionError: it trained other parameters than the stage says, went over another data set, did not start
            from the stage before, never was in the state of the stage's model, or moved buffers that are not followed.
        ResultsError: a file of it is missing or damaged.
    """
    where, examples = bound.stage.where, len(bound.stage.examples)
    _check_trained(bound, recorded)
    if recorded.examples not in (None, examples):
        refuse(
            f"{where}: the recording went over a data set of {recorded.examples:,} examples, the stage's has "
            f"{examples:,}; give the data set that was trained on, as it was"
        )
    start = recorded.state(recorded.states[0])
    if bound.previous is not None:
        theirs = {name: p.detach() for name, p in bound.previous.model.named_parameters()}
        began = {
            name: origin for name, origin in bound.anchored_to.items() if not _from(start.values[name], origin, theirs)
        }
        if began:
            far = max(gap(start.values[name], start_of(origin, theirs)) for name, origin in began.items())
            refuse(
                f"{where}: the recorded training did not start from what '{bound.previous.name}' left: "
                f"{some_names(began)} differ by up to {far:.3g}; give the checkpoint that it started from as the stage "
                "before, or link what was really shared"
            )
    beside = {plain_name(name) for name, _ in bound.stage.model.named_parameters() if is_of_reference(name)}
    if recorded.constants != constants_digest(bound.stage.model, beside | set(_grouped(recorded))):
        refuse(
            f"{where}: parameters that the recorded training did not train have other values in the stage's model than "
            "they had then; give the model as the training left it"
        )
    cut = _cut(bound, recorded)
    check_buffers(bound, start, cut.state(cut.steps))
    return cut


def check_decay(bound: BoundStage) -> None:
    """Refuse a weight decay beside recorded steps, which have it in the optimiser's settings or not at all; and weights
    of the examples, which they have in their loss.

    Raises:
        DescriptionError: the stage has either.
    """
    stage = bound.stage
    if any(bound.decays.values()):
        refuse(
            f"{stage.where}: weight_decay={stage.weight_decay} is the L2 term of a loss at its minimum, "
            "but this stage is differentiated through recorded steps, whose decay is in the optimiser's settings as "
            "used; leave weight_decay= out"
        )
    check_weights(bound)


def unlisted(bound: BoundStage, recorded: Recorded) -> list[str]:
    """Trained parameters that started at the values of the stage before, under the same name, and are not shared."""
    if bound.previous is None:
        return []
    start = recorded.state(recorded.states[0]).values
    theirs = {name: p.detach() for name, p in bound.previous.model.named_parameters()}
    return [
        name
        for name in bound.trained.names
        if name not in bound.anchored_to and name in theirs and start[name].shape == theirs[name].shape
        if bool(start[name].any()) and _same(start[name], theirs[name])
    ]


def _check_trained(bound: BoundStage, recorded: Recorded) -> None:
    own, trained = set(bound.trained.names), set(recorded.trained)
    if own - trained:
        refuse(
            f"{bound.stage.where}: {some_names(sorted(own - trained))} require a gradient in the stage's model, but "
            "the recorded optimiser did not have them; set requires_grad_(False) on what was not trained"
        )
    if trained - own:
        refuse(
            f"{bound.stage.where}: the recorded optimiser trained {some_names(sorted(trained - own))}, which in the "
            "stage's model are missing or have requires_grad=False; give the model as the training left it, and set "
            "requires_grad_(True) on what was trained for a part of the time"
        )


def _cut(bound: BoundStage, recorded: Recorded) -> Recorded:
    values = {plain_name(name): value for name, value in bound.trained_values.items()}
    for step in reversed(recorded.states[1:]):
        state = recorded.state(step)
        for averaged, left in ((False, state.values), (True, state.average)):
            if left and _is_at(left, values):
                return replace(recorded if step == recorded.steps else recorded.cut(step), averaged=averaged)
    last = recorded.state(recorded.steps)
    far = max(gap(last.values[name], value) for name, value in values.items())
    refuse(
        f"{bound.stage.where}: its model is in none of the states that the recording kept (after the last of "
        f"{recorded.steps:,} steps parameters differ by up to {far:.3g}); give the model as that training left it. Of "
        "a checkpoint on the way a state is kept if Recording(every=...) hits its step, and where a Trainer or "
        "Lightning saves one; of averaged weights (EMA, SWA) if they were recorded, Recording(..., average=...)"
    )


def _is_at(left: Params, values: Params) -> bool:
    return all(name in left and _same(left[name], value) for name, value in values.items())


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.cpu(), other.detach().cpu().to(one.dtype))


def _from(began: Tensor, origin: Origin, theirs: Params) -> bool:
    """Whether the steps began at what the stage before left; at what was computed from it, to rounding."""
    return _same(began, theirs[origin]) if isinstance(origin, str) else origin.agrees(began, theirs)


def _grouped(recorded: Recorded) -> list[str]:
    return [name for names in recorded.groups for name in names]
