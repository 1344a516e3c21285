"""A stage at its place in a chain: which parameters it solved for, which it kept, and what pulled on them."""

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.errors import DescriptionError, refuse
from stagetrace.objectives.objective import Objective
from stagetrace.stages.data import Examples
from stagetrace.stages.evaluation import Evaluation, plain_tensor
from stagetrace.stages.gradient import mean_gradient
from stagetrace.stages.kernels import ready_forward_mode
from stagetrace.stages.links.link import Link, Moved, pull_of
from stagetrace.stages.links.names import shared_names
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import ParameterSpace, Params
from stagetrace.stages.stage import Stage


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """`argmin over own of  mean loss(own, inherited) + penalty(own)`: what the stage solved, given the one before.

    A parameter of the model is one of three:
        own: trained here (it requires a gradient and the link did not keep it);
        inherited: kept at the value the previous stage gave it (by its link, or shared with `requires_grad=False`);
        constant: neither trained nor shared; no stage's examples move it.

    kept: `{inherited parameter: previous stage's}`; moved: `{own parameter: previous stage's that it started from}`.
    """

    stage: Stage
    previous: Stage | None
    kept: dict[str, str]
    moved: dict[str, str]

    @staticmethod
    def of(stage: Stage, previous: Stage | None) -> "Problem":
        """Bind a stage to the one before it.

        Raises:
            DescriptionError: the link is missing or misplaced, names or shapes do not map, kept values differ.
        """
        ready_forward_mode()
        where = stage.where
        if previous is None:
            if stage.link is not None and stage.link.pairs:
                refuse(
                    f"{where} is the first of the chain, so nothing came before it; remove its link= (of a "
                    "recorded training: link=Unrolled(recording=...))"
                )
            return _checked(Problem(stage, None, {}, {}))
        if stage.link is None:
            refuse(
                f"{where} comes after '{previous.name}' but does not say how it started from it; give link=Frozen(...) "
                "if the shared parameters were kept, link=Proximal(...) if they were trained further (hf.stage: "
                "after=, the stage before it, finds the link)"
            )
        pairs = shared_names(stage.link.pairs, stage.model, previous.model, where)
        ours, theirs = dict(stage.model.named_parameters()), dict(previous.model.named_parameters())
        for name, other in pairs.items():
            if ours[name].shape != theirs[other].shape:
                refuse(
                    f"{where}: parameter '{name}' has shape {list(ours[name].shape)}, but '{other}' of stage "
                    f"'{previous.name}' has {list(theirs[other].shape)}; share only what the stages have in common"
                )
        moves = not stage.link.keeps_shared
        moved = {name: other for name, other in pairs.items() if moves and ours[name].requires_grad}
        kept = {name: other for name, other in pairs.items() if name not in moved}
        for name, other in moved.items():
            _check_moved(name, ours[name], other, theirs[other], stage, previous)
        for name, other in kept.items():
            _check_kept(name, ours[name], other, theirs[other], stage, previous)
        return _checked(Problem(stage, previous, kept, moved))

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def recording(self) -> Any:
        """The recorded training that the stage is differentiated through; None where it is taken for a minimum."""
        return None if self.stage.link is None else self.stage.link.recording

    @cached_property
    def _parameters(self) -> dict[str, Tensor]:
        return {name: plain_tensor(p) for name, p in self.stage.model.named_parameters()}

    @cached_property
    def constant_names(self) -> tuple[str, ...]:
        """Parameters that are neither trained here nor shared."""
        trainable = {name for name, p in self.stage.model.named_parameters() if p.requires_grad}
        return tuple(name for name in self._parameters if name not in trainable and name not in self.kept)

    @cached_property
    def own_values(self) -> Params:
        constant = set(self.constant_names)
        return {name: p for name, p in self._parameters.items() if name not in self.kept and name not in constant}

    @cached_property
    def inherited_values(self) -> Params:
        return {name: p for name, p in self._parameters.items() if name in self.kept}

    @cached_property
    def own(self) -> ParameterSpace:
        return ParameterSpace.of(self.own_values)

    @cached_property
    def inherited(self) -> ParameterSpace:
        return ParameterSpace.of(self.inherited_values, like=next(iter(self.own_values.values())))

    @cached_property
    def evaluation(self) -> Evaluation:
        return Evaluation(self.stage.evaluated)

    def fresh_evaluation(self) -> Evaluation:
        """The model as a function of parameters once more, by a copy that was never called."""
        return Evaluation(replace(self.stage).evaluated)

    def risk_of(self, where: str, objective: Objective, examples: Examples) -> Risk:
        """The losses of any examples at this stage's parameters."""
        return Risk(
            where,
            self.evaluation,
            objective,
            examples,
            self.own,
            self.inherited,
            self.own_values,
            self.inherited_values,
        )

    @cached_property
    def risk(self) -> Risk:
        """The losses of the stage's own examples."""
        return self.risk_of(self.stage.where, self.stage.loss, self.stage.examples)

    @property
    def moved_values(self) -> Moved:
        """What was trained further, beside what it started from: all that the link is asked about."""
        theirs = {} if self.previous is None else dict(self.previous.model.named_parameters())
        values = {name: value.clone() for name, value in self.own_values.items() if name in self.moved}
        start = {name: theirs[self.moved[name]].detach().to(value, copy=True) for name, value in values.items()}

        def gradient() -> Params:
            whole = self.own.unflatten(self.stationarity)
            return {name: whole[name] for name in values}

        return Moved(self.stage.where, values, start, gradient)

    @cached_property
    def link(self) -> Link | None:
        """The stage's link, what it estimates as numbers; None at the first stage.

        Raises:
            DescriptionError: there is no estimate.
        """
        link = self.stage.link
        return link.resolved(self.moved_values) if link is not None and self.moved else link

    @property
    def link_settings(self) -> dict[str, float | str]:
        """The link's settings that are numbers or words, beside what is shared; empty without a link."""
        given = {} if self.link is None else self.link.settings
        return {name: value for name, value in given.items() if isinstance(value, (int, float, str))}

    @cached_property
    def pull(self) -> Tensor:
        """The second derivative of the link's penalty, a diagonal: `2 a` on moved parameters, 0 elsewhere."""
        nothing = torch.zeros((), dtype=self.own.dtype, device=self.own.device)
        if self.link is None or not self.moved:
            return nothing.expand(self.own.size)
        pull = {name: nothing.expand_as(value) for name, value in self.own_values.items()}
        return self.own.flatten(pull | pull_of(self.link, self.moved_values, self.own.dtype))

    @cached_property
    def anchor(self) -> Tensor:
        """What the pull is towards: the previous stage's values of moved parameters, the stage's own elsewhere."""
        return self.own.flatten(self.own_values | self.moved_values.start)

    @cached_property
    def stationarity(self) -> Tensor:
        """The gradient of mean loss + weight decay in the own parameters, without the link's pull: `[own.size]`."""
        values = self.own.flatten(self.own_values)
        return mean_gradient(self.risk).own.squeeze(1) + self.stage.weight_decay * values

    @cached_property
    def penalty(self) -> Tensor:
        """The penalty's second derivative, a diagonal: weight decay on all own parameters, and the link's pull."""
        return self.stage.weight_decay + self.pull


def _checked(problem: Problem) -> Problem:
    if not problem.own_values:
        frozen = sum(1 for p in problem.stage.model.parameters() if not p.requires_grad)
        refuse(
            f"{problem.stage.where} trained nothing: {len(problem.kept)} of its parameters are kept from the previous "
            f"stage, {frozen} have requires_grad=False; set requires_grad_(True) on those this stage trained"
        )
    _check_memory(problem.stage)
    try:  # dtype and device are checked on construction
        ParameterSpace.of(problem.own_values | problem.inherited_values)
    except DescriptionError as cause:
        refuse(f"{problem.stage.where}: {cause}")
    return problem


def _check_memory(stage: Stage) -> None:
    """Refuse two parameters, or a parameter and a buffer, in the same memory: a step in one moves the other.

    No derivative knows of that.
    """
    held = [("parameter", name, p) for name, p in stage.model.named_parameters()]
    held += [("buffer", name, b) for name, b in stage.model.named_buffers()]
    places = sorted((*_extent(tensor), kind, name) for kind, name, tensor in held if _lies_in_one_piece(tensor))
    for (storage, _, end, kind, name), (other, start, _, other_kind, other_name) in itertools.pairwise(places):
        if storage == other and start < end and "parameter" in (kind, other_kind):
            refuse(
                f"{stage.where}: {kind} '{name}' and {other_kind} '{other_name}' are two tensors in the same memory, "
                "so what trains one moves the other and no gradient says so; tie them as one parameter "
                "(module.weight = other.weight, without .data), or give each memory of its own"
            )


def _lies_in_one_piece(tensor: Tensor) -> bool:
    strided = tensor.layout is torch.strided and tensor.device.type != "meta"
    return strided and tensor.numel() > 0 and tensor.is_contiguous()


def _extent(tensor: Tensor) -> tuple[int, int, int]:
    """Which memory, from which entry, up to which."""
    start = int(tensor.storage_offset())
    return tensor.untyped_storage().data_ptr(), start, start + tensor.numel()


def _check_moved(name: str, value: Tensor, other: str, before: Tensor, stage: Stage, previous: Stage) -> None:
    """Parameters that were trained further lie elsewhere than those they started from."""
    if value is before or (value.layout is torch.strided and value.data_ptr() == before.data_ptr() and value.numel()):
        refuse(
            f"{stage.where}: parameter '{name}' was trained further, but it is the very tensor '{other}' of stage "
            f"'{previous.name}', whose values it has overwritten; load the previous stage's checkpoint into a model of "
            "its own (copy.deepcopy before fine-tuning)"
        )


def _check_kept(name: str, value: Tensor, other: str, before: Tensor, stage: Stage, previous: Stage) -> None:
    """Kept parameters must still be what the previous stage left."""
    after, start = value.detach(), before.detach().to(value)
    if torch.equal(after, start):
        return
    gap = float((after.double() - start.double()).abs().max())
    refuse(
        f"{stage.where}: parameter '{name}' should be kept from '{other}' of stage '{previous.name}', but "
        f"differs from it by up to {gap:.3g}; use link=Proximal(...) if it was trained further, or load the "
        "checkpoint it started from"
    )
