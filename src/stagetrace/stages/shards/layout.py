"""Which rows of a parameter a process keeps, and the whole shapes of a model that keeps only those."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from stagetrace.parallel import world

__all__ = [
    "keep_shapes",
    "piece_of",
    "put_together",
    "shapes_of",
    "sizes_of",
    "whole_shapes",
    "whole_values",
    "whole_vectors",
]

_WHOLE: WeakKeyDictionary[nn.Module, dict[str, torch.Size]] = WeakKeyDictionary()


def keep_shapes(model: nn.Module, shapes: Mapping[str, torch.Size]) -> None:
    """Remember that a model's parameters are pieces of parameters of these shapes."""
    _WHOLE[model] = dict(shapes)


def whole_shapes(model: nn.Module) -> dict[str, torch.Size] | None:
    """The whole shapes of a model's parameters, by name, if its own are pieces; None where they are whole."""
    return _WHOLE.get(model)


def piece_of(value: Tensor) -> Tensor:
    """This process's rows of a whole tensor; of a single number the first process has it.

    Example:
        >>> piece_of(torch.tensor(3.0))
        tensor([3.])
    """
    rows = value if value.ndim else value.reshape(1)
    return rows[world().piece(len(rows))]


def put_together(piece: Tensor, shape: torch.Size) -> Tensor:
    """The whole tensor from every process's rows, on each of them."""
    return world().whole(piece, shape[0] if shape else 1).reshape(shape)


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of each parameter as a whole, by name; of one with several names by each."""
    shapes = whole_shapes(model)
    return shapes or {name: value.shape for name, value in model.named_parameters(remove_duplicate=False)}


def sizes_of(model: nn.Module) -> dict[str, int]:
    """How many entries each parameter has as a whole, by name."""
    shapes = shapes_of(model)
    return {name: shapes[name].numel() for name, _ in model.named_parameters()}


def whole_vectors(pieces: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
    """Whole vectors `[total, k]` on the CPU from every process's pieces `[n, k]`, parameter by parameter."""
    found, start = list[Tensor](), 0
    for shape in shapes:
        rows, width = (shape[0], prod(shape[1:])) if shape else (1, 1)
        mine = world().piece(rows)
        length = (mine.stop - mine.start) * width
        here = pieces[start : start + length].reshape(mine.stop - mine.start, width * pieces.shape[1])
        found.append(world().whole(here, rows).reshape(rows * width, pieces.shape[1]).cpu())
        start += length
    return torch.cat(found)


def whole_values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter's name and whole values, one at a time: all processes ask for the next together."""
    shapes = whole_shapes(model)
    for name, value in model.named_parameters():
        yield name, value if shapes is None else put_together(value.detach(), shapes[name])
