"""The reference of a stage's objective: a frozen model within the stage's own, so that derivatives can reach it.

A DPO loss compares the model with a reference, usually the stage before. As a submodule whose parameters are inherited
from that stage it is what any inherited parameter is: the coupling `d2F / dW dTheta` reaches it, recorded steps are
differentiated in it, and a retraining takes it from the stage before as retrained. Nothing else knows of it.
"""

import copy
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.objectives.pairs import REFERENCE_LOGPS
from stagetrace.objectives.reference import REFERENCE, Compares, is_of_reference
from stagetrace.stages.links.names import canonical_names
from stagetrace.stages.shards import whole_shapes

if TYPE_CHECKING:
    from stagetrace.stages.bound import BoundStage

__all__ = ["frozen_copy", "reference_notices", "reference_pairs", "with_reference"]


def with_reference(model: nn.Module, objective: Any, where: str) -> tuple[nn.Module, Any]:
    """The model with its objective's reference within, and the objective that finds it there; both as they are where
    there is none to be put in.

    A copy of the module that shares its parameters, modules and attributes: the user's own is not changed.

    Raises:
        DescriptionError: the reference is no stage and no module, or lies in shards; a model that calls all its
            children in turn.
    """
    if not isinstance(objective, Compares) or objective.reference is None:
        return model, objective
    given = objective.reference
    if isinstance(given, str):
        if REFERENCE in model._modules:  # pyright: ignore[reportPrivateUsage]
            return model, objective
        refuse(f"{where}: reference= must be a Stage or a model, got the string {given!r}; describe that stage first")
    held = given if isinstance(given, nn.Module) else getattr(given, "model", None)
    if not isinstance(held, nn.Module):
        refuse(f"{where}: reference= must be a Stage or a torch.nn.Module, got {type(given).__name__}")
    if isinstance(model, (nn.Sequential, nn.ModuleList)):
        refuse(
            f"{where}: the reference becomes a submodule of the model, and {type(model).__name__} calls all of its own "
            "in turn; wrap it in a module with a forward"
        )
    if whole_shapes(held) is not None or whole_shapes(model) is not None:
        refuse(f"{where}: a reference is not made for parameters that lie in shards (DTensor); give plain modules")
    within = copy.copy(model)
    vars(within)["_modules"] = dict(model._modules)  # pyright: ignore[reportPrivateUsage]
    within.add_module(REFERENCE, frozen_copy(held, {_memory(p) for p in model.parameters()}))
    words = getattr(given, "where", None) or type(held).__name__
    return within, objective.beside(str(words))


def frozen_copy(model: nn.Module, taken: Collection[int] = ()) -> nn.Module:
    """A copy in eval mode whose parameters are its own, require no gradient and share their memory.

    taken: addresses of memory that is not to be shared.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        values = parameter.detach()
        values = values.clone() if _memory(parameter) in taken else values
        memo[id(parameter)] = nn.Parameter(values, requires_grad=False)
    copied = copy.deepcopy(model, memo).eval()
    copied._modules.pop(REFERENCE, None)  # pyright: ignore[reportPrivateUsage]  (that of the reference's own training)
    return copied


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def reference_pairs(model: nn.Module, previous: nn.Module) -> dict[str, str]:
    """`{parameter of the reference: the previous stage's}`, where the reference is the previous stage's model.

    By names and values: a module of its own that equals that model in every parameter counts as it.
    """
    ours: Mapping[str, Tensor] = dict(model.named_parameters())
    theirs, known = dict(previous.named_parameters()), canonical_names(previous)
    pairs = {name: known.get(name.removeprefix(f"{REFERENCE}."), "") for name in ours if is_of_reference(name)}
    same = all(other in theirs and _equal(ours[name], theirs[other]) for name, other in pairs.items())
    return pairs if same else {}


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.detach(), other.detach().to(one))


def reference_notices(bound: "BoundStage") -> list[str]:
    """One notice where a reference is held fixed although a stage came before."""
    objective, previous = bound.stage.loss, bound.previous
    if not isinstance(objective, Compares) or previous is None:
        return []
    where = bound.stage.where
    if REFERENCE not in bound.stage.model._modules:  # pyright: ignore[reportPrivateUsage]
        return [
            f"{where}: the reference is known by {' and '.join(map(repr, REFERENCE_LOGPS))} alone and held fixed, so "
            f"what examples of '{previous.name}' did through it is left out; give reference= the stage that it was"
        ]
    if any(is_of_reference(name) for name in bound.inherited_from):
        return []
    return [
        f"{where}: the reference is not the model of '{previous.name}' and held fixed, so what examples of "
        f"'{previous.name}' did through it is left out; give reference= that stage if it was the reference"
    ]
