"""From what an optimiser left behind to `EarlyStopping`: the time and the metric of a stage's training."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stagetrace.errors import StagetraceWarning, refuse
from stagetrace.recording.link import load_recording
from stagetrace.recording.names import plain_name
from stagetrace.recording.recorded import Recorded
from stagetrace.replay.checkpoints import Checkpoint, in_order
from stagetrace.replay.fitting import fitting
from stagetrace.replay.left import (
    Left,
    Settings,
    Slots,
    left_by_optimizer,
    left_by_recording,
    left_by_state,
    steps_counted,
)
from stagetrace.solvers.early_stopping import EarlyStopping, Segment
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.differentiable_norms import running_statistics
from stagetrace.stages.stage import check_count

Sessions = Recorded | str | Path | Sequence[Recorded | str | Path]
"""A recording, or those of the sessions of one training, in order."""


def stopped_early(
    bound: BoundStage,
    training: "torch.optim.Optimizer | Mapping[str, Any] | Sequence[Checkpoint] | Sessions",
    rates: Sequence[float] | None = None,
    *,
    segments: int = 1,
    rtol: float = 1e-3,
    max_steps: int = 200,
) -> EarlyStopping:
    """The solver of a stage that Adam, AdamW or SGD trained for so many steps and no further.

        t = sum of the rates / (1 - momentum)          momentum (and dampening) of SGD
        D = sqrt(exp_avg_sq / (1 - beta2^step)) + eps  of Adam and AdamW, at their last step; 1 for SGD

    Groups with rates of their own share the first one's t, their D divided by their share of it. Entries whose
    gradients all were 0 (a token never seen) never moved. AdamW's decay is taken along; that of the loss belongs to the
    curvature, `Stage(weight_decay=...)`.

    Of several checkpoints, each stretch between two of them has the time and the metric of its own, and the curvature
    and the examples' gradients of its end; one with a single checkpoint takes those of the end for all of it.

    Args:
        bound: the stage at its place in a chain, `chain["pretrain"]`.
        training: the optimiser that trained the stage's model; or its `state_dict()`, with names
            (`Adam(model.named_parameters())`) or in the order of the stage's parameters; or the checkpoints of its
            training (`Checkpoint`), the last at the stage's model; or a recording, its folder or those of sessions.
        rates: the learning rate of each step (of the first group), `[1e-3] * 500`. A recording has them; Adam without
            a scheduler says itself how many steps it took. Checkpoints have rates of their own.
        segments: into how many stretches of about the same time a recording is cut, at states that it kept.
        rtol, max_steps: as for `EarlyStopping`.

    Raises:
        DescriptionError: it is of another training or optimiser, or does not say how far it went.
        ResultsError: the recording cannot be read.

    Example:
        >>> from stagetrace import Chain, Stage
        >>> from stagetrace.objectives import Regression
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        >>> chain = Chain(Stage("line", model=model, objective=Regression(), data=[(torch.ones(1), torch.ones(1))]))
        >>> print(stopped_early(chain["line"], optimizer, rates=[0.1] * 20))
        EarlyStopping(time=4, rtol=0.001)
    """
    if not isinstance(bound, BoundStage):
        refuse(
            f"stopped_early: got a {type(bound).__name__}; give the stage at its place in a chain, chain['pretrain']"
        )
    if rates is not None and (isinstance(rates, str) or not isinstance(rates, Sequence)):
        got = type(rates).__name__
        refuse(f"stopped_early: rates must be a list, the learning rate of each step, [1e-3] * 500, got a {got}")
    check_count(segments, "stopped_early(segments=...)")
    folders = _folders(training)
    if segments > 1 and folders is None:
        refuse(
            f"{bound.stage.where}: segments={segments} cuts a recording, at the states that it kept; of a training "
            "that was not recorded give a list of Checkpoints, one for the end of each stretch"
        )
    if folders is not None:
        if rates is not None:
            refuse(f"{bound.stage.where}: the recording has the rates of its steps; leave rates out")
        stretches = _of_recording(bound, fitting(bound, load_recording(folders)), segments)
    elif isinstance(training, torch.optim.Optimizer | Mapping):
        stretches = [(None, _left(bound, training, rates))]
        _warn_of_steps(bound, stretches[0][1], rates)
    else:
        if rates is not None:
            refuse(f"{bound.stage.where}: rates belong to each checkpoint, Checkpoint(state, values=..., rates=[...])")
        stretches = _of_checkpoints(bound, training)
    if len(stretches) > 1 and running_statistics(bound.stage.model):
        refuse(
            f"{bound.stage.where}: the model has running statistics (batch norm), which were others at earlier "
            "checkpoints; give the last checkpoint alone"
        )
    *before, (_, end) = [(values, _measures(bound, left)) for values, left in stretches]
    earlier = [Segment(time, values, metric, decay) for values, (time, metric, decay) in before if values is not None]
    return EarlyStopping(*end, rtol=rtol, max_steps=max_steps, earlier=tuple(earlier))


def _folders(training: Any) -> Any:
    """A recording, or those of the sessions of one training; None where it is something else."""
    if isinstance(training, Recorded | str | Path):
        return training
    if (
        isinstance(training, Sequence)
        and training
        and all(isinstance(each, Recorded | str | Path) for each in training)
    ):
        return training
    return None


def _warn_of_steps(bound: BoundStage, left: Left, rates: Sequence[float] | None) -> None:
    """Of rates of epochs, say, where those of the steps were meant: the time would be too short by a factor."""
    counted = steps_counted(left.slots)
    if rates is not None and len(rates) < counted:
        warnings.warn(
            f"{bound.stage.where}: the optimiser counted {counted:,} steps and {len(rates):,} rates were given, which "
            "are taken for its last steps (as they are where it went on from an earlier training); else give the rate "
            "of each step",
            StagetraceWarning,
            stacklevel=3,
        )


def _left(bound: BoundStage, training: Any, rates: Sequence[float] | None) -> Left:
    if isinstance(training, torch.optim.Optimizer):
        return left_by_optimizer(bound, training, rates)
    return left_by_state(bound, training, rates)


def _of_checkpoints(bound: BoundStage, training: Any) -> list[tuple[Tensor | None, Left]]:
    """Each stretch's end and what was left there; of rates that an optimiser counts, those since the last."""
    if not isinstance(training, Sequence) or not all(isinstance(each, Checkpoint) for each in training):
        refuse(
            f"{bound.stage.where}: the training must be a torch optimiser, its state_dict(), a list of Checkpoints or "
            f"a recording, got {type(training).__name__}"
        )
    found, counted = list[tuple[Tensor | None, Left]](), list[float]()
    for each in in_order(bound, training):
        left = _left(bound, each.state, each.rates)
        if each.rates is None:
            so_far = list(left.rates)
            before = counted or [0.0] * len(so_far)
            left, counted = replace(left, rates=[now - then for now, then in zip(so_far, before, strict=True)]), so_far
        elif counted:
            refuse(f"{bound.stage.where}: some checkpoints have rates and some have not; give each its own")
        found.append((each.of(bound), left))
    return found


def _of_recording(bound: BoundStage, recorded: Recorded, segments: int) -> list[tuple[Tensor | None, Left]]:
    """Stretches of about the same time, each from one kept state to another."""
    if segments == 1:
        return [(None, left_by_recording(recorded))]
    rates = [
        sum(float(group["lr"]) for group in step.groups) for block in recorded.blocks for step in recorded.read(block)
    ]
    times = {state: sum(rates[:state]) for state in recorded.states[1:]}
    whole = times[recorded.steps]
    ends = [min(times, key=lambda state: abs(times[state] - whole * part / segments)) for part in range(1, segments)]
    found, since = list[tuple[Tensor | None, Left]](), 0
    for end in dict.fromkeys([*ends, recorded.steps]):
        values = recorded.state(end).values
        here = bound.trained.flatten({name: values[plain_name(name)].to(v) for name, v in bound.trained_values.items()})
        found.append((here, left_by_recording(recorded if end == recorded.steps else recorded.cut(end), since)))
        since = end
    if len(found) < segments:
        warnings.warn(
            f"{bound.stage.where}: {segments} stretches of the training were asked for, and the recording kept states "
            f"for {len(found)} of about the same time, which are taken; record with every=... for more",
            StagetraceWarning,
            stacklevel=4,
        )
    return found


def _measures(bound: BoundStage, left: Left) -> tuple[float, Tensor | None, float | Tensor]:
    """Time, metric and decay of a stretch."""
    where, trained = bound.stage.where, bound.trained
    _warn_of_decay(bound, left)
    times = [rate / _holding_back(where, group) for rate, group in zip(left.rates, left.groups, strict=True)]
    time = next((each for each in times if each > 0), 0.0)
    if not time:
        refuse(f"{where}: its learning rates add up to 0, so that it was not trained; look at rates")
    metric, decay = list[Tensor](), list[Tensor]()
    for name, shape in zip(trained.names, trained.shapes, strict=True):
        place = left.group[plain_name(name)]
        share, group = times[place] / time, left.groups[place]
        metric.append(_roots(where, name, left.slots.get(plain_name(name), {}), group, shape).reshape(-1) / share)
        decay.append(torch.full((shape.numel(),), share * _decay(group), dtype=torch.float64))
    D, shrinks = torch.cat(metric), torch.cat(decay)
    same = bool((shrinks == shrinks[0]).all())
    return time, None if bool((D == 1).all()) else D, float(shrinks[0]) if same else shrinks


def _warn_of_decay(bound: BoundStage, left: Left) -> None:
    """Of an L2 term that the optimiser added to the gradient and that the stage's curvature does not have."""
    added = {name: _coupled(left.groups[left.group[plain_name(name)]]) for name in bound.trained.names}
    own = bound.decays
    wrong = next((name for name, decay in added.items() if decay and decay != own[name]), None)
    if wrong is None:
        return
    alike = len({*added.values()}) == 1
    of, give = ("", f"{added[wrong]:g}") if alike else (f" of '{wrong}'", "{...}) with patterns of names")
    warnings.warn(
        f"{bound.stage.where}: the optimiser added weight_decay={added[wrong]:g} times the parameters to the gradient"
        f"{of}, and the stage's curvature has {own[wrong]:g}, so that scores are those of another penalty; give "
        f"Stage(..., weight_decay={give}{')' if alike else ''}",
        StagetraceWarning,
        stacklevel=3,
    )


def _coupled(group: Settings) -> float:
    """What was added to the gradient, times the parameters."""
    return 0.0 if group.get("decoupled_weight_decay") else float(group.get("weight_decay") or 0.0)


def _holding_back(where: str, group: Settings) -> float:
    """What a sum of rates is divided by: a momentum makes each gradient count again and again."""
    if group.get("maximize"):
        refuse(f"{where}: the optimiser climbed (maximize=True); there is no minimum that it stopped on its way to")
    momentum = float(group.get("momentum") or 0.0)
    return (1 - momentum) / (1 - float(group.get("dampening") or 0.0)) if momentum else 1.0


def _decay(group: Settings) -> float:
    """What the parameters themselves shrank by per rate, decoupled from the gradient."""
    return float(group["weight_decay"]) if group.get("decoupled_weight_decay") else 0.0


def _roots(where: str, name: str, slots: Slots, group: Settings, shape: torch.Size) -> Tensor:
    """D of one parameter, in float64; infinite where it never moved."""
    if "nesterov" in group:  # SGD
        return torch.ones(shape, dtype=torch.float64)
    if "amsgrad" not in group or ("exp_avg_sq" not in slots and slots):
        refuse(
            f"{where}: the metric is known of Adam, AdamW and SGD, and the optimiser is none of them; give it and "
            "the time yourself: EarlyStopping(time, metric)"
        )
    if not slots:
        return torch.full(shape, torch.inf, dtype=torch.float64)
    square = slots["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].detach().cpu().double()
    beta2, step = float(group["betas"][1]), int(slots["step"])
    root = (square / (1 - beta2**step)).sqrt() + float(group["eps"])
    return torch.where(square > 0, root, torch.inf)
