"""Tensors of a model that lie in the same memory."""

import itertools

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse

__all__ = ["check_apart"]


def check_apart(model: nn.Module, where: str) -> None:
    """Refuse two parameters, or a parameter and a buffer, in the same memory: a step in one moves the other.

    No derivative knows of that.

    Raises:
        DescriptionError: with their names.
    """
    held = [("parameter", name, p) for name, p in model.named_parameters()]
    held += [("buffer", name, b) for name, b in model.named_buffers()]
    places = sorted((*_extent(tensor), kind, name) for kind, name, tensor in held if _lies_in_one_piece(tensor))
    for (storage, _, end, kind, name), (other, start, _, other_kind, other_name) in itertools.pairwise(places):
        if storage == other and start < end and "parameter" in (kind, other_kind):
            refuse(
                f"{where}: {kind} '{name}' and {other_kind} '{other_name}' are two tensors in the same memory, "
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
