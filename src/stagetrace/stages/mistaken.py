"""What is easily given in the place of a data set."""

from collections.abc import Callable
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace.errors import refuse
from stagetrace.objectives.batches import in_short


def refuse_no_data_set(data: Any, collate: Callable[[list[Any]], Any] | None, where: str) -> None:
    """Refuse a lone example, tensors of all examples side by side, and objects of the library.

    Raises:
        DescriptionError: says what to write.
    """
    kind = type(data).__name__
    if data is None:
        refuse(f"{where}: data is None; give a data set, or a list of examples")
    if isinstance(data, type):
        refuse(f"{where}: data is the class {kind if kind != 'type' else data.__name__}; give an instance of it")
    if isinstance(data, nn.Module):
        refuse(f"{where}: data is the module {kind}; give a data set, or a list of examples")
    if type(data).__module__.split(".")[0] == __name__.split(".")[0] and kind in ("Query", "Stage", "Chain"):
        refuse(f"{where}: data is a {kind}; give the data set itself, or a list of examples")
    if isinstance(data, tuple) and any(isinstance(part, (Tensor, np.ndarray, Number)) for part in data):
        refuse(f"{where}: data is {in_short(data)}, {_either(len(data))}")
    if isinstance(data, TensorDataset) and any(tensor.layout is not torch.strided for tensor in data.tensors):
        refuse(
            f"{where}: data is a TensorDataset with a sparse tensor, whose rows PyTorch does not give; use "
            "tensor.to_dense(), or a list of examples with collate=..."
        )
    if isinstance(data, list) and collate is None and len(data) == 2 and _unlike(*data):
        refuse(f"{where}: data is {in_short(data)}, {_either(2)}")


def _unlike(one: Any, other: Any) -> bool:
    """Whether two parts cannot be two examples of one data set, collated as PyTorch does."""
    bare = (Tensor, np.ndarray, Number)
    if not (isinstance(one, bare) and isinstance(other, bare)) or isinstance(one, Number) == isinstance(other, Number):
        return _shape(one) != _shape(other) if isinstance(one, bare) and isinstance(other, bare) else False
    return True


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _either(parts: int) -> str:
    return (
        f"which would be read as {parts} examples; write [(x, y)] for one example, "
        "torch.utils.data.TensorDataset(x, y) for tensors of all examples, list(data) for a tuple of examples"
    )
