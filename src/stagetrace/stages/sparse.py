"""Sparse tensors: what they are made of, and what PyTorch does not do with them."""

import torch
from torch import Tensor, nn

COMPRESSED_ROWS = (torch.sparse_csr, torch.sparse_bsr)
COMPRESSED_COLUMNS = (torch.sparse_csc, torch.sparse_bsc)


def parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that a tensor consists of: itself, or its indices and values.

    Example:
        >>> [list(part.shape) for part in parts_of(torch.eye(3).to_sparse())]
        [[2, 3], [3]]
    """
    if tensor.layout is torch.sparse_coo:
        whole = tensor.detach().coalesce()
        return whole.indices(), whole.values()
    if tensor.layout in COMPRESSED_ROWS:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in COMPRESSED_COLUMNS:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor,)


def storages_of(tensor: Tensor) -> dict[int, int]:
    """`{address: bytes}` of what the tensor keeps alive."""
    parts = parts_of(tensor)
    if tensor.layout is torch.sparse_coo:  # as they are: coalesced ones may be copies
        parts = (tensor._indices(), tensor._values())  # pyright: ignore[reportPrivateUsage]
    held = (part.untyped_storage() for part in parts if part.layout is torch.strided)
    return {storage.data_ptr(): storage.nbytes() for storage in held}


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are equal, as they are written down."""
    ours, theirs = parts_of(one), parts_of(other)
    return one.layout == other.layout and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def compressed_copies(model: nn.Module) -> dict[int, Tensor]:
    """Copies of a model's compressed sparse tensors by their identity, for `copy.deepcopy`, which cannot copy them."""
    held = (
        tensor
        for module in model.modules()
        for tensor in (*module.buffers(recurse=False), *vars(module).values())
        if isinstance(tensor, Tensor)
    )
    compressed = (*COMPRESSED_ROWS, *COMPRESSED_COLUMNS)
    return {id(tensor): tensor.detach().clone() for tensor in held if tensor.layout in compressed}
