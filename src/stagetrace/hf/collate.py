"""Examples of unequal length as one batch, padded on the right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stagetrace.errors import DataError
from stagetrace.objectives.tokens import IGNORED


@final
@dataclass(frozen=True)
class Collation:
    """Pads each feature to the longest of the batch, on the right; what was added is masked and has the label -100.

    Padding does not change an example's loss, so any token will do where a model has no padding token of its own.

    Args:
        pad: the token that pads `input_ids`.
        segment: what pads `token_type_ids`.

    Example:
        >>> long, short = {"input_ids": [1, 2, 3]}, {"input_ids": [4]}
        >>> Collation(pad=9)([long, short])["input_ids"].tolist()
        [[1, 2, 3], [4, 9, 9]]
    """

    pad: int = 0
    segment: int = 0

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`{feature: [batch, length]}`, or `[batch]` for what is one number per example.

        Raises:
            DataError: two examples have different features.
        """
        names = list(examples[0])
        for example in examples:
            if set(example) != set(names):
                raise DataError(f"examples of one batch have different features: {names} and {list(example)}")
        return {name: self._stack(name, [torch.as_tensor(example[name]) for example in examples]) for name in names}

    def _stack(self, name: str, values: list[Tensor]) -> Tensor:
        if values[0].ndim == 0:
            return torch.stack(values)
        fills = {"input_ids": self.pad, "token_type_ids": self.segment, "labels": IGNORED}
        return pad_sequence(values, batch_first=True, padding_value=fills.get(name, 0))
