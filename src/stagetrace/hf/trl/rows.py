"""Rows as an `SFTTrainer` of TRL reads them: prepared as tokens with labels, packed or not, or raw with images."""

from typing import Any, final

from stagetrace.errors import DataError, first_line
from stagetrace.hf.columns import LENGTHS, TOKENISED
from stagetrace.hf.modal import of_one
from stagetrace.hf.trl.own import read_by
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


@final
class Illustrations:
    """The rows with images of an `SFTTrainer`, each as its collator makes it alone: tokens, pixels and labels.

    Args:
        trainer: with a collator of TRL's for vision and language.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer, self.rows = trainer, trainer.train_dataset

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        row = read_by(self._trainer, self.rows[index])
        try:
            return of_one(self._trainer.data_collator([row]))
        except Exception as cause:  # whatever a processor raises
            name = type(self._trainer.data_collator).__name__
            raise DataError(f"example {index} is not read by {name} ({first_line(cause)}); leave it out") from cause


def _whole(values: Any) -> list[int]:
    return [int(value) for value in values]
