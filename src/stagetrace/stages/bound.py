"""A stage bound to the one before it: which parameters it trained, which it inherited, and what pulled on them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.errors import DescriptionError, refuse
from stagetrace.objectives.objective import Objective
from stagetrace.renamed import renamed_attributes
from stagetrace.stages.buffers import shared_buffers
from stagetrace.stages.data import Examples
from stagetrace.stages.decay import decays_of
from stagetrace.stages.differentiable_norms import running_statistics
from stagetrace.stages.evaluation import Evaluation, plain_tensor
from stagetrace.stages.gradient import mean_gradient
from stagetrace.stages.kernels import ready_forward_mode
from stagetrace.stages.links.computed import Computed, Origin, by_name, gap, start_of
from stagetrace.stages.links.link import Anchored, Link, pull_of
from stagetrace.stages.links.names import check_shapes, origins_of
from stagetrace.stages.overlaps import check_apart
from stagetrace.stages.precision import check_precision_fits
from stagetrace.stages.reference import reference_pairs
from stagetrace.stages.risk import Risk
from stagetrace.stages.shards import whole_shapes
from stagetrace.stages.space import ParameterSpace, Params
from stagetrace.stages.stage import Stage


@final
@renamed_attributes(
    own="trained", own_values="trained_values", kept="inherited_from", moved="anchored_to", moved_values="anchored"
)
@dataclass(frozen=True, eq=False)
class BoundStage:
    """What a stage solved, given the one before: `argmin over trained of mean loss(trained, inherited) + penalty`.

    A parameter of the model is one of three:
        trained: by this stage (it requires a gradient, and the link did not freeze it);
        inherited: frozen at the previous stage's value (by the link, or shared with `requires_grad=False`);
        constant: neither trained nor shared; no stage's examples change it.

    inherited_from: `{inherited parameter: the previous stage's}`.
    anchored_to: `{trained parameter: the previous stage's that it started from}`; new ones are not in it.
    In both, what was `Computed` from several of the previous stage's stands in place of a name.
    """

    stage: Stage
    previous: Stage | None
    inherited_from: dict[str, Origin]
    anchored_to: dict[str, Origin]

    @staticmethod
    def of(stage: Stage, previous: Stage | None) -> "BoundStage":
        """Bind a stage to the one before it.

        Raises:
            DescriptionError: the link is missing or misplaced, names or shapes do not map, inherited values differ.
        """
        ready_forward_mode()
        where = stage.where
        if previous is None:
            if stage.link is not None and (stage.link.pairs or stage.link.computed):
                refuse(
                    f"{where} is the first of the chain, so nothing came before it; remove its link= (of a "
                    "recorded training: link=Unrolled(recording=...))"
                )
            return _checked(BoundStage(stage, None, {}, {}))
        if stage.link is None:
            refuse(
                f"{where} comes after '{previous.name}' but does not say how it started from it; give link=Frozen(...) "
                "if the shared parameters were kept, link=Proximal(...) if they were trained further (hf.stage: "
                "after=, the stage before it, finds the link)"
            )
        pairs = origins_of(stage.link.pairs, stage.link.computed, stage.model, previous.model, where)
        pairs |= reference_pairs(stage.model, previous.model)
        ours, theirs = dict(stage.model.named_parameters()), dict(previous.model.named_parameters())
        check_shapes(stage.model, previous.model, pairs, where, previous.name)
        trains = not stage.link.keeps_shared
        anchored = {name: other for name, other in pairs.items() if trains and ours[name].requires_grad}
        inherited = {name: other for name, other in pairs.items() if name not in anchored}
        for name, other in anchored.items():
            for source in (other,) if isinstance(other, str) else other.of:
                _check_anchored(name, ours[name], source, theirs[source], stage, previous)
        for name, other in inherited.items():
            _check_inherited(name, ours[name], other, theirs, stage, previous)
        return _checked(BoundStage(stage, previous, inherited, anchored))

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def recording(self) -> Any:
        """The recorded training that the stage is differentiated through; None where it is taken for a minimum."""
        return None if self.stage.link is None else self.stage.link.recording

    @property
    def replay_memory(self) -> int:
        """Bytes for the states of a recorded training, see `Link.memory`; 0 where nothing was recorded."""
        return 0 if self.stage.link is None else self.stage.link.memory

    @cached_property
    def _parameters(self) -> dict[str, Tensor]:
        return {name: plain_tensor(p) for name, p in self.stage.model.named_parameters()}

    @cached_property
    def constant_names(self) -> tuple[str, ...]:
        """Parameters that are neither trained here nor shared."""
        trainable = {name for name, p in self.stage.model.named_parameters() if p.requires_grad}
        return tuple(name for name in self._parameters if name not in trainable and name not in self.inherited_from)

    @cached_property
    def trained_values(self) -> Params:
        constant = set(self.constant_names)
        return {
            name: p for name, p in self._parameters.items() if name not in self.inherited_from and name not in constant
        }

    @cached_property
    def inherited_values(self) -> Params:
        return {name: p for name, p in self._parameters.items() if name in self.inherited_from}

    @cached_property
    def trained(self) -> ParameterSpace:
        return ParameterSpace.of(self.trained_values)

    @cached_property
    def inherited(self) -> ParameterSpace:
        return ParameterSpace.of(self.inherited_values, like=next(iter(self.trained_values.values())))

    @cached_property
    def statistics_values(self) -> Params:
        """The running statistics that are followed: a batch norm's, where the training was recorded; else none."""
        return {} if self.recording is None else running_statistics(self.stage.model)

    @cached_property
    def statistics(self) -> ParameterSpace:
        return ParameterSpace.of(self.statistics_values, like=next(iter(self.trained_values.values())))

    @cached_property
    def shared_statistics(self) -> dict[str, str]:
        """`{followed running statistic: previous stage's}` beside shared parameters."""
        if self.previous is None or self.stage.link is None:
            return {}
        pairs = by_name(self.inherited_from | self.anchored_to)
        shared = shared_buffers(self.stage.link, pairs, self.stage.model, self.previous.model)
        return {name: other for name, other in shared.items() if name in self.statistics_values}

    @cached_property
    def evaluation(self) -> Evaluation:
        return Evaluation(self.stage.evaluated, self.stage.precision, whole_shapes(self.stage.model))

    def fresh_evaluation(self) -> Evaluation:
        """The model as a function of parameters once more, by a copy that was never called."""
        return Evaluation(replace(self.stage).evaluated, shapes=whole_shapes(self.stage.model))

    def risk_of(self, where: str, objective: Objective, examples: Examples) -> Risk:
        """The losses of any examples at this stage's parameters."""
        return Risk(
            where,
            self.evaluation,
            objective,
            examples,
            self.trained,
            self.inherited,
            self.trained_values,
            self.inherited_values,
        )

    @cached_property
    def risk(self) -> Risk:
        """The losses of the stage's own examples, each times its weight."""
        stage = self.stage
        return replace(self.risk_of(stage.where, stage.loss, stage.examples), weights=stage.example_weights)

    @property
    def anchored(self) -> Anchored:
        """The parameters that were trained further, and where they started: what the link is asked about."""
        theirs = {} if self.previous is None else dict(self.previous.model.named_parameters())
        values = {name: value.clone() for name, value in self.trained_values.items() if name in self.anchored_to}
        start = {name: start_of(self.anchored_to[name], theirs).to(value, copy=True) for name, value in values.items()}

        def gradient() -> Params:
            whole = self.trained.unflatten(self.stationarity)
            return {name: whole[name] for name in values}

        return Anchored(self.stage.where, values, start, gradient)

    @cached_property
    def link(self) -> Link | None:
        """The stage's link, what it estimates as numbers; None at the first stage.

        Raises:
            DescriptionError: there is no estimate.
        """
        link = self.stage.link
        return link.resolved(self.anchored) if link is not None and self.anchored_to else link

    @property
    def link_settings(self) -> dict[str, float | str]:
        """The link's settings that are numbers or words, beside what is shared; empty without a link."""
        given = {} if self.link is None else self.link.settings
        return {name: value for name, value in given.items() if isinstance(value, (int, float, str))}

    @cached_property
    def pull(self) -> Tensor:
        """The second derivative of the link's penalty, a diagonal: `2 a` on anchored parameters, 0 elsewhere."""
        nothing = torch.zeros((), dtype=self.trained.dtype, device=self.trained.device)
        if self.link is None or not self.anchored_to:
            return nothing.expand(self.trained.size)
        pull = {name: nothing.expand_as(value) for name, value in self.trained_values.items()}
        return self.trained.flatten(pull | pull_of(self.link, self.anchored, self.trained.dtype))

    @cached_property
    def anchor(self) -> Tensor:
        """Where the pull leads: the previous stage's values of anchored parameters, the stage's own elsewhere."""
        return self.trained.flatten(self.trained_values | self.anchored.start)

    @cached_property
    def decays(self) -> dict[str, float]:
        """The L2 coefficient of each trained parameter.

        Raises:
            DescriptionError: the stage's mapping leaves one out, or gives it two.
        """
        return decays_of(self.stage.weight_decay, self.trained_values, self.stage.where)

    @cached_property
    def decay(self) -> Tensor:
        """The same as a vector `[trained.size]`, or a single number `[]` where they are alike."""
        like = torch.zeros((), dtype=self.trained.dtype, device=self.trained.device)
        if len(set(self.decays.values())) == 1:
            return like + next(iter(self.decays.values()))
        each = {name: (like + decay).expand_as(self.trained_values[name]) for name, decay in self.decays.items()}
        return self.trained.flatten(each)

    @cached_property
    def stationarity(self) -> Tensor:
        """The gradient of mean loss + weight decay in the trained parameters, without the pull: `[trained.size]`."""
        values = self.trained.flatten(self.trained_values)
        return mean_gradient(self.risk).trained.squeeze(1) + self.decay * values

    @cached_property
    def penalty(self) -> Tensor:
        """The penalty's second derivative, a diagonal: weight decay on all trained parameters, and the link's pull."""
        return self.decay + self.pull


def _checked(bound: BoundStage) -> BoundStage:
    if not bound.trained_values:
        frozen = sum(1 for p in bound.stage.model.parameters() if not p.requires_grad)
        refuse(
            f"{bound.stage.where} trained nothing: {len(bound.inherited_from)} of its parameters are kept from the "
            f"previous stage, {frozen} have requires_grad=False; set requires_grad_(True) on those this stage trained"
        )
    bound.decays  # noqa: B018  (every trained parameter has one)
    check_apart(bound.stage.model, bound.stage.where)
    try:  # dtype and device are checked on construction
        ParameterSpace.of(bound.trained_values | bound.inherited_values)
    except DescriptionError as cause:
        refuse(f"{bound.stage.where}: {cause}")
    stage, dtype = bound.stage, bound.trained.dtype
    check_precision_fits(stage.precision, dtype, stage.where, recorded=bound.recording is not None)
    return bound


def _check_anchored(name: str, value: Tensor, other: str, before: Tensor, stage: Stage, previous: Stage) -> None:
    """Parameters that were trained further are not in the memory of those they started from."""
    if value is before or (value.layout is torch.strided and value.data_ptr() == before.data_ptr() and value.numel()):
        refuse(
            f"{stage.where}: parameter '{name}' was trained further, but it is the very tensor '{other}' of stage "
            f"'{previous.name}', whose values it has overwritten; load the previous stage's checkpoint into a model of "
            "its own (copy.deepcopy before fine-tuning)"
        )


def _check_inherited(
    name: str, value: Tensor, other: Origin, theirs: Mapping[str, Tensor], stage: Stage, previous: Stage
) -> None:
    """Inherited parameters still have the values that the previous stage left, those that were computed to rounding."""
    after, start = value.detach(), start_of(other, theirs).to(value)
    if torch.equal(after, start) or (isinstance(other, Computed) and other.agrees(after, theirs)):
        return
    came = f"'{other}' of stage '{previous.name}'" if isinstance(other, str) else f"{other} ('{previous.name}')"
    refuse(
        f"{stage.where}: parameter '{name}' should be kept from {came}, but "
        f"differs from it by up to {gap(after, start):.3g}; use link=Proximal(...) if it was trained further, or load "
        "the checkpoint it started from"
    )
