"""A model with DTensors as a plain model of this process's pieces, which shares their memory.

Modules are of the classes that they were before `fully_shard`, without its hooks; nothing of the given model changes.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.parallel import world
from stagetrace.stages.shards.layout import keep_shapes, piece_of

__all__ = ["in_pieces"]

_WRAPPERS = ("torch.distributed.fsdp", "torch.distributed._composable")
_MARKS = ("__composable_api_state_key", "_is_fsdp", "_fsdp")

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def in_pieces(model: nn.Module, where: str) -> nn.Module:
    """The plain model of this process's rows; the model itself where no parameter lies in shards.

    Raises:
        DescriptionError: the shards are not rows on all processes of the run, or the model cannot be taken apart.
    """
    sharded = [_fully_sharded(module) for module in model.modules()]
    if not any(sharded) and not any(map(is_sharded, (*model.parameters(), *model.buffers()))):
        return model
    for name, module in model.named_modules():
        _check(f"'{name}'" if name else "the model", module, where)
    made, shapes = dict[int, Any](), dict[str, torch.Size]()
    plain = _plain(model, made)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shapes[name] = parameter.shape
    keep_shapes(plain, shapes)
    return plain


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is one process's view of a tensor that lies in pieces on several (FSDP2, tensor parallelism)."""
    module = sys.modules.get("torch.distributed.tensor")  # importing it takes a second; who has such a tensor has it
    return module is not None and isinstance(tensor, module.DTensor)


def _fully_sharded(module: nn.Module) -> bool:
    return any(kind.__module__.startswith(_WRAPPERS) for kind in type(module).__mro__)


def _check(at: str, module: nn.Module, where: str) -> None:
    """Refuse what cannot be put together layer by layer."""
    if isinstance(module, nn.RNNBase):
        refuse(
            f"{where}: {at} is a recurrent layer ({type(module).__name__}), whose weights PyTorch takes all at "
            "once; give the plain module with the full state"
        )
    if _fully_sharded(module):
        policy = getattr(getattr(module, "_get_fsdp_state")(), "_mp_policy", None)  # noqa: B009
        if getattr(policy, "param_dtype", None) is not None or getattr(policy, "output_dtype", None) is not None:
            refuse(
                f"{where}: {at} was given to fully_shard with mp_policy={policy}, which computes in another dtype than "
                "its parameters have; give it without mp_policy=, and the model in the dtype that it was trained in"
            )
        getattr(module, "reshard")()  # noqa: B009  (else it may hold whole weights that are freed later)
    for name, buffer in module.named_buffers(recurse=False):
        if is_sharded(buffer):
            refuse(f"{where}: buffer '{name}' of {at} lies in shards; keep buffers whole in every process")
    for name, parameter in module.named_parameters(recurse=False):
        if is_sharded(parameter):
            _check_placement(f"parameter '{name}' of {at}", parameter, where)


def _check_placement(what: str, parameter: Any, where: str) -> None:
    mesh, placements = parameter.device_mesh, parameter.placements
    kinds = [type(each).__name__ for each in placements]
    by_rows = kinds == ["Replicate"] or (kinds == ["Shard"] and placements[0].dim == 0)
    if mesh.ndim == 1 and by_rows and (mesh.size(), mesh.get_local_rank()) == (world().size, world().rank):
        return
    got = f"{', '.join(map(str, placements))} on a mesh of {'x'.join(map(str, mesh.shape))}"
    refuse(
        f"{where}: {what} lies in shards that are not read: {got}; they must be rows (Shard(0)) or copies (Replicate) "
        f"on a one-dimensional mesh of all {world().size} processes, as fully_shard makes them. Or give the plain "
        "module with the full state, torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True))"
    )


def _plain(module: nn.Module, made: dict[int, Any]) -> nn.Module:
    """The module over again: same attributes, children and buffers, parameters in pieces; made: what is there."""
    if id(module) in made:
        return made[id(module)]
    kind = type(module)
    if _fully_sharded(module):
        kind = next(each for each in kind.__mro__[1:] if not each.__module__.startswith(_WRAPPERS))
    plain: nn.Module = object.__new__(kind)
    made[id(module)] = plain
    held = {key: value for key, value in vars(module).items() if not key.startswith(_MARKS)}
    for key in _HOOKS:
        if key in held:
            _take_over(held, key)
    held["_buffers"] = dict(held["_buffers"])
    held["_parameters"] = {name: _piece(value, made) for name, value in held["_parameters"].items()}
    held["_modules"] = {
        name: None if child is None else _plain(child, made) for name, child in held["_modules"].items()
    }
    vars(plain).update(held)
    return plain


def _take_over(held: dict[str, Any], key: str) -> None:
    """Copy a module's hooks, without those of `fully_shard`."""
    hooks: Mapping[int, Callable[..., Any]] = held[key]
    ours = [number for number, hook in hooks.items() if not _origin(hook).startswith(_WRAPPERS)]
    held[key] = OrderedDict((number, hooks[number]) for number in ours)
    for beside in (f"{key}_with_kwargs", f"{key}_always_called"):
        if beside in held:
            held[beside] = OrderedDict((number, held[beside][number]) for number in ours if number in held[beside])


def _origin(hook: Any) -> str:
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))


def _piece(value: Any, made: dict[int, Any]) -> Any:
    if value is None or id(value) in made:
        return None if value is None else made[id(value)]
    here = _local(value)
    made[id(value)] = nn.Parameter(here, requires_grad=value.requires_grad)
    return made[id(value)]


def _local(value: Any) -> Tensor:
    """This process's rows of a parameter, in the memory that it has."""
    if not is_sharded(value):
        return piece_of(value.detach())
    local: Tensor = value.to_local().detach()
    return local if type(value.placements[0]).__name__ == "Shard" else piece_of(local)
