"""Fixed groups of rows as examples: what a loss over a batch needs to be a mean of examples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from stagetrace.errors import BatchError, refuse

__all__ = ["Grouped"]

MASK = "attention_mask"


def check_count(groups: object) -> None:
    """Refuse what is no size of a group."""
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        refuse(f"Grouped: groups must be how many rows make one, or the rows of each group, got {groups!r}")


@final
class Grouped:
    """A data set whose examples are fixed groups of another's: what a loss over a batch needs to be a mean of examples.

    Args:
        data: a map-style data set of rows, such as pairs.
        groups: how many rows that lie together make a group (the last may not be smaller), or the rows of each group,
            such as the batches that were trained on.
        collate: list of rows -> one example; PyTorch's default otherwise.

    Raises:
        DescriptionError: groups of another kind, rows that are left over, a row that does not exist.

    Example:
        >>> pairs = [(float(i), -float(i)) for i in range(4)]
        >>> Grouped(pairs, 2)[1]
        [tensor([2., 3.], dtype=torch.float64), tensor([-2., -3.], dtype=torch.float64)]
    """

    def __init__(
        self,
        data: Any,
        groups: int | Sequence[Sequence[int]],
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        total = len(data)
        if not isinstance(groups, Sequence):
            check_count(groups)
            if total % groups:
                refuse(
                    f"Grouped: {total:,} rows are no groups of {groups}; leave out the last {total % groups}, "
                    "as drop_last=True does in training, or give the rows of each group"
                )
            groups = [range(start, start + groups) for start in range(0, total, groups)]
        self.data, self.collate = data, collate or default_collate
        self.groups = [[int(index) for index in group] for group in groups]
        wrong = next((index for group in self.groups for index in group if not 0 <= index < total), None)
        if not self.groups or not all(self.groups) or wrong is not None:
            what = "a group is empty" if wrong is None else f"there is no row {wrong}: the data set has {total:,}"
            refuse(f"Grouped: {what}; give the rows of each group")

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Any:
        return self.collate([self.data[row] for row in self.groups[index]])

    @staticmethod
    def padded(groups: Sequence[Any]) -> Any:
        """A collation of groups that were padded to lengths of their own, for `Stage(..., collate=Grouped.padded)`.

        What a tokenizer gives of a group, a dict of tensors `[rows, length]` with an `attention_mask`, is padded by
        zeros behind, which the mask leaves out. All else goes as in PyTorch's own collation.

        Raises:
            BatchError: tokens of several lengths without a mask.

        Example:
            >>> import torch
            >>> one, other = (dict.fromkeys(("input_ids", "attention_mask"), torch.ones(1, n)) for n in (1, 2))
            >>> Grouped.padded([one, other])["attention_mask"]
            tensor([[[1., 0.]],
            <BLANKLINE>
                    [[1., 1.]]])
        """
        return default_collate(_of_one_length(list(groups)))


def _of_one_length(groups: list[Any]) -> list[Any]:
    """The groups, or the same part of each, with the tokens in them padded to the longest."""
    if isinstance(groups[0], (tuple, list)):
        parts = [_of_one_length(list(part)) for part in zip(*groups, strict=True)]
        return list(zip(*parts, strict=True))
    if not isinstance(groups[0], Mapping):
        return groups
    longest = {name: max(_length(group[name]) for group in groups) for name in groups[0]}
    if MASK not in groups[0]:
        for name, length in longest.items():
            if any(_length(group[name]) != length for group in groups):
                raise BatchError(
                    f"'{name}' has several lengths in the groups of a batch, and there is no '{MASK}' beside it by "
                    "which padding is left out; pad all groups to one length"
                )
        return groups
    return [
        {
            name: F.pad(value, (0, longest[name] - value.shape[1])) if _length(value) else value
            for name, value in group.items()
        }
        for group in groups
    ]


def _length(value: Any) -> int:
    """Of tokens `[rows, length]` their length; 0 of anything else."""
    return value.shape[1] if isinstance(value, Tensor) and value.ndim == 2 else 0
