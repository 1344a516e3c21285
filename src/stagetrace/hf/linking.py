"""The link from a stage to the one before it, found from names and values."""

import copy
import warnings
from collections.abc import Collection
from typing import Any, Literal

from torch import nn

from stagetrace.errors import DescriptionError, StagetraceWarning, refuse
from stagetrace.hf.names import plain_names
from stagetrace.hf.sharing import Shared, shared
from stagetrace.hf.vocabulary import with_common_rows
from stagetrace.stages.links.frozen import Frozen
from stagetrace.stages.links.link import Link
from stagetrace.stages.links.proximal import Proximal
from stagetrace.stages.stage import Stage


def link_to(
    model: nn.Module, after: Stage, link: Link | None, alpha: float | Literal["auto"], where: str
) -> tuple[nn.Module, Link]:
    """The link, and the model with its unchanged shared parameters frozen.

    All shared values unchanged: `Frozen`. Otherwise `Proximal`, and the unchanged tensors require no gradient: a tensor
    that training does not change at all was not trained. A vocabulary that grew is cut into the rows of before and
    those that were added; of weights that adapters of the stage before were merged into, the link is told how.

    Raises:
        DescriptionError: nothing is shared, or something is shared in a way that no link describes.
    """
    if not isinstance(after, Stage):
        kind = f"the name '{after}'" if isinstance(after, str) else type(after).__name__
        refuse(
            f"{where}: after= must be a Stage, the one this stage started from, got {kind}; describe that stage first: "
            f"pretrain = hf.stage('pretrain', model, data), then after=pretrain"
        )
    if link is not None:
        return model, link
    try:
        model = with_common_rows(model, after.model)
        found = shared(model, after)
        _check_trained(model, found, after)
    except DescriptionError as cause:
        refuse(f"{where}: {cause}")
    _warn_of_reshaped(model, found, where)
    pairs = dict(found)  # a plain dict: a run is recognised by how its links read
    if not found.moved:
        return model, Frozen(pairs)
    return _without_gradient(model, found.kept), Proximal(pairs, alpha)


def _check_trained(model: nn.Module, found: Shared, after: Stage) -> None:
    """Refuse parameters that changed although they have `requires_grad=False`."""
    fixed = [name for name in found.moved if not model.get_parameter(name).requires_grad]
    if fixed:
        refuse(
            f"'{fixed[0]}'{f' and {len(fixed) - 1} more' if len(fixed) > 1 else ''} changed since {after.where} but "
            "has requires_grad=False; if this stage trained it, type: model.requires_grad_(True) (merge_and_unload() "
            "leaves it off), else give the weights that this stage started from"
        )


def _warn_of_reshaped(model: nn.Module, found: Shared, where: str) -> None:
    """Warn of tensors below the heads that have another shape than before: what they learned before is not traced."""
    plain = plain_names(model)
    for name, (ours, theirs) in found.reshaped.items():
        if plain[name][0] == "base":
            warnings.warn(
                f"{where}: '{name}' has shape {list(ours)}, before it was {list(theirs)}, so it is not shared, and "
                "effects of the stage before through it are not traced",
                StagetraceWarning,
                stacklevel=4,
            )


def _without_gradient(model: nn.Module, names: Collection[str]) -> nn.Module:
    """A copy of the model that shares its memory, in which the named parameters require no gradient."""
    if not any(parameter.requires_grad for name, parameter in model.named_parameters() if name in names):
        return model
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad and name not in names)
        for name, parameter in model.named_parameters()
    }
    return copy.deepcopy(model, memo)
