"""How much memory products may take, and what a graph of autograd keeps of it: counted once, while it is recorded."""

from collections.abc import Callable
from typing import TypeVar, final
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.stages.sparse import storages_of

T = TypeVar("T")

GIB = 2**30
ON_CPU, OF_GPU = 2 * GIB, 1 / 3
"""What intermediates may take where nothing was said: bytes, and the share of a GPU's memory, of which what lies there
and vectors take the rest."""


def allowance(memory: int | None, device: torch.device) -> int:
    """Bytes that intermediates may take per process: as asked for, else 2 GiB on a CPU and a third of a GPU's memory.

    Example:
        >>> allowance(None, torch.device("cpu")), allowance(1000, torch.device("cpu"))
        (2147483648, 1000)
    """
    if memory is not None:
        return memory
    if device.type != "cuda":
        return ON_CPU
    return int(OF_GPU * torch.cuda.get_device_properties(device).total_memory)


def graph_bytes(risk: Risk, batch: Batch, record: Callable[[], T]) -> tuple[T, int]:
    """The result of `record`, and the bytes that the graphs it records keep alive.

    Parameters, buffers and the batch do not count: they are in memory anyway.
    """
    result, kept = graph_storages(risk, batch, record)
    return result, sum(kept.values())


def graph_storages(risk: Risk, batch: Batch, record: Callable[[], T]) -> tuple[T, dict[int, int]]:
    """The same by the places in memory: what two records share is in both, while both results live."""
    data = [leaf for leaf in tree_leaves(batch.content) if isinstance(leaf, Tensor)]
    parameters = (*risk.trained_values.values(), *risk.inherited_values.values())
    anyway = {
        address for tensor in (*parameters, *risk.evaluation.model.buffers(), *data) for address in storages_of(tensor)
    }
    live = WeakSet[_Kept]()  # what a graph let go of again on the way does not count, and its place may be another's

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        live.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = record()
    saved = {address: size for kept in live for address, size in storages_of(kept.tensor).items()}
    return result, {address: size for address, size in saved.items() if address not in anyway}


@final
class _Kept:
    """A tensor that a graph keeps, for as long as it does."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
