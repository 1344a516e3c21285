"""A table of vectors in pieces, for a vocabulary that grew: the rows of before, and those that were added."""

import copy
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


@final
class Rows(nn.Module):
    """The pieces of a tensor, one below the other, as a parametrization: each piece is a parameter of its own.

    sizes: the number of rows of each.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)

    def forward(self, *pieces: Tensor) -> Tensor:
        return torch.cat(pieces)

    def right_inverse(self, whole: Tensor) -> tuple[Tensor, ...]:
        return tuple(piece.clone() for piece in whole.split(self.sizes))


def rows_of(module: nn.Module, attribute: str) -> Rows | None:
    """The pieces that a parameter is in, None where it is whole."""
    lists: Any = getattr(module, "parametrizations", {})
    found = lists[attribute][0] if attribute in lists else None
    return found if isinstance(found, Rows) else None


def cut(model: nn.Module, whole: nn.Parameter, sizes: Sequence[int], kept: Sequence[bool]) -> None:
    """Cut a parameter of `model` into pieces, at every place where it stands (tied weights stay tied); changes `model`.

    kept: for each piece, whether it requires no gradient.
    """
    places = [
        (module, name)
        for module in list(model.modules())
        for name, parameter in module._parameters.items()  # pyright: ignore[reportPrivateUsage]
        if parameter is whole
    ]
    pieces: list[nn.Parameter] = []
    for module, name in places:
        parametrize.register_parametrization(module, name, Rows(sizes))
        lists: Any = module.parametrizations
        if not pieces:
            found = [getattr(lists[name], f"original{number}") for number in range(len(sizes))]
            pieces = [
                nn.Parameter(piece.detach(), requires_grad=whole.requires_grad and not fixed)
                for piece, fixed in zip(found, kept, strict=True)
            ]
        for number, piece in enumerate(pieces):
            setattr(lists[name], f"original{number}", piece)
    for module in model.modules():
        if getattr(getattr(module, "__deepcopy__", None), "__self__", module) is not module:
            cls = type(module)
            named = {"__module__": cls.__module__, "__deepcopy__": _copied_whole}
            module.__class__ = type(cls.__name__, (cls,), named)


def _copied_whole(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy of a wrapper that hands attributes on to a module inside: PyTorch gives modules with parametrizations a
    `__deepcopy__`, and handed on it would copy what is inside alone.
    """
    found: nn.Module = module.__new__(type(module))
    memo[id(module)] = found
    vars(found).update(copy.deepcopy(vars(module), memo))
    return found
