"""Notices about a stage, and which of its parameters and buffers its scores account for."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from stagetrace.errors import some_names
from stagetrace.objectives.reference import is_of_reference
from stagetrace.parallel import world
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.buffers import moved_buffers, shared_buffers
from stagetrace.stages.differentiable_norms import running_statistics
from stagetrace.stages.links.computed import by_name
from stagetrace.stages.reference import reference_notices
from stagetrace.stages.shards import sizes_of, whole_shapes
from stagetrace.stages.stage import Stage

MODE_DEPENDENT = (
    nn.modules.dropout._DropoutNd,  # pyright: ignore[reportPrivateUsage]
    nn.modules.batchnorm._NormBase,  # pyright: ignore[reportPrivateUsage]
)


def notices(stage: Stage) -> list[str]:
    """Notices for the user: those in the data set's attribute `notices`, a column of ids that cannot serve, and layers
    that behave differently in training mode.
    """
    given: list[str] = [*getattr(stage.data, "notices", ())]
    given += [] if stage.ids_and_notice[1] is None else [stage.ids_and_notice[1]]
    found = sorted({type(m).__name__ for m in stage.model.modules() if isinstance(m, MODE_DEPENDENT) and _differs(m)})
    if not found:
        return given
    return [
        *given,
        f"{stage.where}: the model is in training mode and has {', '.join(found)}; it is evaluated in eval mode",
    ]


def _differs(module: nn.Module) -> bool:
    """Whether a layer computes otherwise in training mode, which it is in; dropout of no unit does not."""
    return module.training and getattr(module, "p", 1.0) > 0


def remarks(stage: Stage) -> list[str]:
    """What the data set's attribute `remarks` says of the stage as described: as usual, so nothing to warn of."""
    return [*getattr(stage.data, "remarks", ())]


def notices_at(bound: BoundStage) -> list[str]:
    """The stage's own notices, and those of its place in the chain, such as running statistics that changed."""
    statistics = *changed_statistics(bound), *unfollowed_statistics(bound)
    return [*notices(bound.stage), *statistics, *_hooked(bound), *_forgotten(bound), *reference_notices(bound)]


def _hooked(bound: BoundStage) -> list[str]:
    """One notice where gradients of trained parameters pass a hook: training followed the changed gradient."""
    named = bound.stage.model.named_parameters()
    names = [name for name, p in named if p._backward_hooks or p._post_accumulate_grad_hooks]  # pyright: ignore[reportPrivateUsage]
    if not names:
        return []
    return [
        f"{bound.stage.where}: {some_names(names)} {'has' if len(names) == 1 else 'have'} a gradient hook "
        "(register_hook); scores follow the gradient of the loss, without the hook"
    ]


def _forgotten(bound: BoundStage) -> list[str]:
    """One notice where a constant of the stage equals, by name and value, what the stage before trained."""
    if bound.previous is None:
        return []
    ours, theirs = (dict(stage.model.named_parameters()) for stage in (bound.stage, bound.previous))
    shared, pieces = {*bound.inherited_from, *bound.anchored_to}, whole_shapes(bound.stage.model) is not None
    same = [
        name
        for name in bound.constant_names
        if name not in shared
        and name in theirs
        and theirs[name].requires_grad
        and _equal(ours[name], theirs[name], in_pieces=pieces)
    ]
    if not same:
        return []
    them, earlier = "it" if len(same) == 1 else "them", bound.previous.name
    return [
        f"{bound.stage.where}: {some_names(same)} {'is' if len(same) == 1 else 'are'} constant here and equal to "
        f"what stage '{earlier}' trained under that name, but the link does not share {them}: effects of examples of "
        f"'{earlier}' through {them} are left out; name {them} in the link"
    ]


def _equal(one: Tensor, other: Tensor, *, in_pieces: bool) -> bool:
    """in_pieces: whether both are pieces, of which those of all processes count."""
    equal = one.shape == other.shape and torch.equal(one.detach(), other.detach().to(one))
    return all(world().gather(equal)) if in_pieces else equal


def changed_statistics(bound: BoundStage) -> list[str]:
    """One notice where running statistics changed although the weights of their layers were inherited."""
    layers = _layers(_buffers(bound)[1])
    if not layers:
        return []
    return [
        f"{bound.stage.where}: the running statistics (buffers) of {some_names(layers, 3)} changed although the "
        "weights there did not; scores treat them as constants. To keep them fixed, call eval() on the frozen layers "
        "while fine-tuning, after model.train()"
    ]


def unfollowed_statistics(bound: BoundStage) -> list[str]:
    """One notice where running statistics are shared and only one of both trainings was recorded."""
    before = bound.previous
    if before is None or (bound.recording is None) == (before.link is None or before.link.recording is None):
        return []
    known = running_statistics(bound.stage.model)
    layers = _layers(name for name in _buffers(bound)[0] if name in known)
    if not layers:
        return []
    return [
        f"{bound.stage.where}: running statistics are followed from stage to stage where both trainings were "
        f"recorded, and that of '{bound.name if bound.recording is None else before.name}' was not, so what "
        f"examples of '{before.name}' did to those of {some_names(layers, 3)} is left out"
    ]


def _layers(buffers: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in buffers))


def _buffers(bound: BoundStage) -> tuple[dict[str, str], list[str]]:
    """The shared buffers, and those of them that changed although the weights of their layers were inherited."""
    stage, previous = bound.stage, bound.previous
    if stage.link is None or previous is None:
        return {}, []
    pairs = by_name(bound.inherited_from | bound.anchored_to)
    shared = shared_buffers(stage.link, pairs, stage.model, previous.model)
    return shared, moved_buffers(stage.link, shared, stage.model, previous.model)


@final
@dataclass(frozen=True)
class Coverage:
    """How many of a stage's parameters its scores account for, and the names of those they do not.

    buffers: floating-point buffers, which no score accounts for (the running statistics of a recorded training are
        none); shared_buffers: those in layers with shared parameters; moved_buffers: those of these that differ from
        the previous stage's although the parameters were inherited.
    """

    trained: int
    kept: int
    constant: int
    constant_names: tuple[str, ...]
    buffers: tuple[str, ...]
    shared_buffers: tuple[str, ...] = ()
    moved_buffers: tuple[str, ...] = ()

    @staticmethod
    def of(bound: BoundStage) -> "Coverage":
        sizes = sizes_of(bound.stage.model)
        floating = (name for name, b in bound.stage.model.named_buffers() if b.is_floating_point())
        buffers = tuple(name for name in floating if name not in bound.statistics_values)
        constants = tuple(name for name in bound.constant_names if not is_of_reference(name))
        constant = sum(sizes[name] for name in constants)
        shared, moved = _buffers(bound)
        trained, kept = (
            sum(sizes[name] for name in space.names if not is_of_reference(name))
            for space in (bound.trained, bound.inherited)
        )
        return Coverage(trained, kept, constant, constants, buffers, tuple(shared), tuple(moved))

    def __str__(self) -> str:
        total = self.trained + self.kept + self.constant
        text = f"{self.trained:,} of {total:,} parameters trained here"
        text += f", {self.kept:,} kept from the previous stage" if self.kept else ""
        if self.constant:
            some = ", ".join(self.constant_names[:3]) + (", ..." if len(self.constant_names) > 3 else "")
            text += f", {self.constant:,} constant ({some})"
        return text
