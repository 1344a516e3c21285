"""Rows as TRL prepared them for an `SFTTrainer`: tokens with labels, packed or not."""

from typing import Any, final

from stagetrace.errors import DataError
from stagetrace.hf.columns import LENGTHS, TOKENISED
from stagetrace.objectives.tokens import IGNORED


@final
class Prepared:
    """The rows of an `SFTTrainer`, with the labels that its collator gives them.

    Without a column 'labels' they are the tokens. In rows that pack documents, the first token of each has the label
    -100: nothing predicts it.

    Args:
        rows: `trainer.train_dataset`.
        apart: whether the documents of a row are kept apart (`padding_free`).
    """

    def __init__(self, rows: Any, *, apart: bool) -> None:
        self.rows, self.apart = rows, apart

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self.rows[range(len(self))[index]]
        if TOKENISED not in row:
            raise DataError(f"example {index} has no '{TOKENISED}'; it has {list(row)}")
        tokens = _whole(row[TOKENISED])
        given = row.get("labels")
        labels = list(tokens) if given is None else _whole(given)
        found = {TOKENISED: tokens, "labels": labels}
        if self.apart and row.get(LENGTHS) is not None:
            found[LENGTHS] = _whole(row[LENGTHS])
            place = 0
            for length in found[LENGTHS]:
                if place < len(labels):
                    labels[place] = IGNORED
                place += length
        return found


def _whole(values: Any) -> list[int]:
    return [int(value) for value in values]
