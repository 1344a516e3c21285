"""Examples of similar length in one chunk: a chunk is padded to its longest, and padding costs as much as words."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from stagetrace.stages.data import Examples

LOOKED_AT = 8
"""Examples spread through the data set: if they have one size, all are assumed to, and the order stays."""


def by_size(examples: Examples, indices: Sequence[int]) -> tuple[Sequence[int], bool]:
    """The indices in the order of the examples' sizes, and whether those differ; a mean may take any order.

    Example:
        >>> texts = Examples([[1, 2, 3], [1], [1, 2]], 2, list, 0, "texts")
        >>> by_size(texts, [0, 1, 2])
        ([1, 2, 0], True)
    """
    spread = indices[:: max(1, len(indices) // LOOKED_AT)]
    if len({size_of(examples.data[index]) for index in spread}) < 2:
        return indices, False
    sizes = {index: size_of(examples.data[index]) for index in indices}
    return sorted(indices, key=lambda index: sizes[index]), True


def size_of(example: Any) -> int:
    """Numbers in an example: of its tensors and arrays, lists and fields; characters of its strings."""
    return sum(_size(leaf) for leaf in tree_leaves(example))


def _size(leaf: Any) -> int:
    if isinstance(leaf, Tensor):
        return leaf.numel()
    return len(leaf) if isinstance(leaf, str) else int(getattr(leaf, "size", 1))
