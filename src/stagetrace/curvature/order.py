"""Examples of similar length in one chunk of a mean, which may take them in any order."""

from collections.abc import Sequence

from stagetrace.stages.alike import differ, sizes_of
from stagetrace.stages.data import Examples

__all__ = ["by_size"]


def by_size(examples: Examples, indices: Sequence[int]) -> tuple[Sequence[int], bool]:
    """The indices in the order of the examples' sizes, and whether those differ.

    Example:
        >>> texts = Examples([[1, 2, 3], [1], [1, 2]], 2, list, 0, "texts")
        >>> by_size(texts, [0, 1, 2])
        ([1, 2, 0], True)
    """
    if not differ(examples):
        return indices, False
    sizes = dict(zip(indices, sizes_of(examples, indices), strict=True))
    return sorted(indices, key=sizes.__getitem__), True
