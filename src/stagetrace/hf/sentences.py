"""A data set of rows, read as the features that a stage's model takes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

from stagetrace.checks.lookout import length
from stagetrace.hf.pairs import PairReader
from stagetrace.hf.reader import Features, Given, Reader
from stagetrace.hf.rows import first_row


@final
class Sentences:
    """A map-style data set whose items are the features of another's, made when they are read.

    Every row must have those columns of the first row that count.

    Args:
        rows: the data set as it was given; an example's id is its index there.
        reader: how a row is read.
        notices: what was decided for the user and should be known.
        remarks: what is as usual, and said where a stage is looked at or a run kept.
    """

    def __init__(
        self,
        rows: Any,
        reader: Reader | Given | PairReader,
        notices: tuple[str, ...] = (),
        remarks: tuple[str, ...] = (),
    ) -> None:
        expected = reader.relevant(rows[0])
        self.rows, self.reader = rows, replace(reader, expected=expected)
        self.notices, self.remarks = notices, remarks

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Features:
        index = range(len(self))[index]
        return self.reader(self.rows[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[Features]:
        """Several examples: their texts are tokenised in one call."""
        places = [range(len(self))[index] for index in indices]
        rows = [self.rows[index] for index in places]
        if isinstance(self.reader, Reader):
            return self.reader.several(rows, places)
        return list(map(self.reader, rows, places))

    def length_of(self, index: int) -> int:
        """How long an example is, about: without making features of it."""
        return length(self.rows[index])

    def of(self, rows: Any, where: str) -> "Sentences":
        """Other rows, read in the same way.

        Raises:
            DescriptionError, DataError: as for `first_row`.
        """
        first_row(rows, where)
        return Sentences(rows, replace(self.reader, where=where))
