"""The ranking of examples that `Scores.top` returns."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, final

from rich.table import Table

from stagetrace.results.frame import frame
from stagetrace.results.sheet import Sheet
from stagetrace.results.sign import REMOVAL_HEADING, SCORE_HEADING

if TYPE_CHECKING:
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]


class Row(NamedTuple):
    """One example: its index in the stage's data set, its score and the effect of removing it."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index, as a row's name may
    score: float
    removal_effect: float


@final
@dataclass(frozen=True)
class Top:
    """Examples in order of their score: an immutable table that iterates over its rows.

    Sign: a positive score is harmful (more weight on the example raises the query loss); a negative removal
    effect means that removing the example helps. Unit of both: query loss.

    Example:
        >>> top = Top("most harmful", (Row(index=7, score=0.5, removal_effect=-0.05),))
        >>> [row.index for row in top], top.scores, len(top)
        ([7], (0.5,), 1)
        >>> print(top)
        most harmful
          index   score (+ harmful, query loss)   effect of removal (query loss; - helps)
         ─────────────────────────────────────────────────────────────────────────────────
              7                      +5.000e-01                                -5.000e-02
    """

    title: str
    rows: tuple[Row, ...]

    @property
    def indices(self) -> tuple[int, ...]:
        """The examples' indices in the stage's data set."""
        return tuple(row.index for row in self.rows)

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores; positive = harmful; unit: query loss."""
        return tuple(row.score for row in self.rows)

    @property
    def removal_effects(self) -> tuple[float, ...]:
        """The predicted changes of the query loss on removal; negative = removing it helps."""
        return tuple(row.removal_effect for row in self.rows)

    def to_pandas(self) -> "DataFrame":
        """A frame with the columns index, score, removal_effect.

        Raises:
            DescriptionError: pandas is not installed.
        """
        return frame({"index": self.indices, "score": self.scores, "removal_effect": self.removal_effects})

    def sheet(self) -> Sheet:
        """What the table says, ready to be drawn."""
        rows = tuple((str(row.index), f"{row.score:+.3e}", f"{row.removal_effect:+.3e}") for row in self.rows)
        return Sheet(self.title, ("index", SCORE_HEADING, REMOVAL_HEADING), rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Row:
        return self.rows[place]

    def __str__(self) -> str:
        return self.sheet().text()

    def __rich__(self) -> Table:
        return self.sheet().rich()

    def _repr_html_(self) -> str:  # pyright: ignore[reportUnusedFunction]
        return self.sheet().html()
