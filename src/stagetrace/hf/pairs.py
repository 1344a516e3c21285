"""Rows of pairs, a chosen and a rejected text each, as TRL prepares them: read and padded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stagetrace.errors import DataError
from stagetrace.hf.rows import present
from stagetrace.objectives.pairs import SIDES


@final
@dataclass(frozen=True, eq=False)
class PairReader:
    """A row of a `DPOTrainer` or `RewardTrainer` -> the features of both its texts, cut as the trainer's collator cuts.

    collator: the trainer's, called for one row at a time.
    columns: those that the trainer reads.
    tokenizer: of the texts, for a query that asks about another text, and for reports.
    as_trained: the row itself, for a recorded training, whose batches the trainer's own collator made.
    expected: the columns that the first row has; None does not compare.

    Raises:
        DataError: an example has not the columns of the first; with its index.
    """

    collator: Any
    columns: frozenset[str]
    tokenizer: Any
    where: str
    as_trained: bool = False
    expected: frozenset[str] | None = None

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        """The features of example `index`: tensors `[length]` of each text, and numbers of the pair."""
        found = self.relevant(row)
        if self.expected is not None and found != self.expected:
            raise DataError(
                f"{self.where}: example {index} has the columns {sorted(found)}, unlike example 0, which has "
                f"{sorted(self.expected)}; all rows must have the same"
            )
        kept = {name: row[name] for name in row if name in found}
        if self.as_trained:
            return kept
        try:
            batch: Mapping[str, Tensor] = self.collator([kept])
        except (KeyError, TypeError, ValueError, RuntimeError) as cause:
            raise DataError(
                f"{self.where}: example {index} cannot be collated ({type(cause).__name__}: {cause}); its columns are "
                f"{list(kept)}"
            ) from cause
        features: dict[str, Any] = {}
        for place, side in enumerate(SIDES):
            inside = batch["attention_mask"][place] != 0
            features |= {f"{side}_{name}": value[place][inside] for name, value in batch.items() if len(value) == 2}
        return features | {name: value[0] for name, value in batch.items() if len(value) == 1}

    def relevant(self, row: Mapping[str, Any]) -> frozenset[str]:
        """The columns of a row that the trainer reads."""
        return frozenset(name for name in present(row) if name in self.columns)


@final
@dataclass(frozen=True)
class PairCollation:
    """Pads the chosen texts to the longest of them, and the rejected ones likewise, on the right behind their mask.

    Args:
        pad: the token that pads.

    Example:
        >>> rows = [{"chosen_input_ids": torch.tensor([5, 6])}, {"chosen_input_ids": torch.tensor([7])}]
        >>> PairCollation(pad=9)(rows)["chosen_input_ids"].tolist()
        [[5, 6], [7, 9]]
    """

    pad: int = 0

    def __call__(self, examples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """`{feature: [batch, length]}`, or `[batch]` for what is one number a pair."""
        return {name: self._together(name, [example[name] for example in examples]) for name in examples[0]}

    def _together(self, name: str, values: list[Tensor]) -> Tensor:
        if not values[0].ndim:
            return torch.stack(values)
        return pad_sequence(values, batch_first=True, padding_value=self.pad if name.endswith("input_ids") else 0)
