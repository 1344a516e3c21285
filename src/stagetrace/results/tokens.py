"""Scores of single tokens: which tokens of a stage's examples carry their scores.

The score of the token at position t is d(query loss)/d(epsilon) for the stage objective `mean loss + epsilon * loss_t`,
with loss_t the term that *predicting this token* adds to its example's loss, divided as the example's loss divides it.
Positive = harmful; unit: query loss. An example's score is the sum of its tokens'. Of a large stage those of the
largest size are kept, those of the examples at both ends of the ranking, and of each example the sum of the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.results.grouped import Grouped, grouped
from stagetrace.results.sign import REMOVAL_HEADING, SCORE_HEADING
from stagetrace.results.table import ShownAsTable, Table

ENDS = 100
"""Examples at each end of a ranking of which every token is kept; as many as a report shows."""

KEPT = 1_000_000
"""Tokens of a stage that are kept by default: those with the largest scores, whatever their sign."""

REST = -1
"""The position, and the token, of a row that stands for all tokens of its example that were left out."""


class TokenRow(NamedTuple):
    """A token: its example's index, its position there, its id, and its score; what its removal is predicted to do."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index, as a row's name may
    position: int
    token: int
    score: float
    removal_effect: float


@final
@dataclass(frozen=True, eq=False)
class ExampleTokens:
    """The tokens of one example, in the order of their positions.

    positions: int64 `[m]`, of the predicted tokens. tokens: their ids, int64 `[m]`.
    values: their scores, float32 `[m]`, or `[n_queries, m]`; positive = harmful; unit: query loss.
    left_out: the sum of the scores of tokens that were not kept, float32, a number or `[n_queries]`; 0 where all were.
    """

    index: int
    positions: Tensor
    tokens: Tensor
    values: Tensor
    left_out: Tensor

    @property
    def total(self) -> Tensor:
        """The example's score, float64: the sum over its tokens, kept or not."""
        return self.values.double().sum(dim=-1) + self.left_out.double()


@final
@dataclass(frozen=True, eq=False, repr=False)
class TokenScores(ShownAsTable):
    """The tokens of one stage that were kept; `trace.tokens["pretrain"][17]` are those of its example 17.

    n_examples: of the stage; a token's removal effect is `-score / n_examples`.
    index, position, token: int64 `[m]`, ordered by example and position; a position of -1 is the rest of its example.
    values: float32 `[m]`, or `[n_queries, m]`. Sign: positive = harmful. Unit: query loss.
    scored: how many tokens the stage has. largest_left_out: the size of the largest score that was not kept; 0 if all
        were.

    Raises:
        DescriptionError: tensors of another shape.

    Example:
        >>> import torch
        >>> index, position = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 1])
        >>> found = TokenScores("fit", 2, index, position, torch.tensor([7, 8, 9]), torch.tensor([0.5, -2.0, 1.0]), 3)
        >>> found[0].tokens, float(found[0].total)
        (tensor([7, 8]), -1.5)
        >>> found.top(1)
        [TokenRow(index=1, position=1, token=9, score=1.0, removal_effect=-0.5)]
    """

    stage: str
    n_examples: int
    index: Tensor
    position: Tensor
    token: Tensor
    values: Tensor
    scored: int
    largest_left_out: float = 0.0

    def __post_init__(self) -> None:
        rows = len(self.index)
        if len(self.position) != rows or len(self.token) != rows or self.values.shape[-1] != rows:
            refuse(f"TokenScores({self.stage!r}): index, position, token and values must be of one length")

    @property
    def n_queries(self) -> int | None:
        """How many queries `values` has rows for; None where the query was reduced to one number."""
        return len(self.values) if self.values.ndim == 2 else None

    @property
    def kept(self) -> int:
        """How many tokens were kept."""
        return int((self.position != REST).sum())

    def __len__(self) -> int:
        return self.kept

    def __getitem__(self, index: int) -> ExampleTokens:
        """The tokens of example `index` that were kept.

        Raises:
            DescriptionError: no such example.
        """
        if not 0 <= index < self.n_examples:
            refuse(f"TokenScores({self.stage!r}): example {index} does not exist; type 0 to {self.n_examples - 1}")
        first, stop = torch.searchsorted(self.index, torch.tensor([index, index + 1])).tolist()
        positions, values = self.position[first:stop], self.values[..., first:stop]
        own = positions != REST
        left_out = values[..., ~own].sum(dim=-1)
        return ExampleTokens(index, positions[own], self.token[first:stop][own], values[..., own], left_out)

    def grouped(self, groups: Iterable[str | int]) -> Grouped:
        """The sums of the scores over groups of tokens: the documents of packed rows.

        groups: the name of each kept token's group, in the order of `index` and `position`. Of rows of a
            `stagetrace.corpora.TokenFile` they are `data.document_of(tokens.index, tokens.position)`.

        Raises:
            DescriptionError: tokens that were not kept belong to some group, too; or another number of names.
            DataError: a name that is no text or whole number.
        """
        if bool((self.position == REST).any()):
            refuse(
                f"TokenScores({self.stage!r}).grouped: {self.kept:,} of {self.scored:,} tokens were kept, and sums "
                f"over groups need all; trace again with tokens={self.scored}"
            )
        return replace(grouped(self.stage, self.values, groups), n_examples=self.n_examples)

    def top(self, k: int = 10, *, harmful: bool = True, query: int | None = None) -> list[TokenRow]:
        """The k most harmful tokens of the stage, the most harmful first, or the most helpful ones.

        query: by which row they are ranked; None by the mean over queries.

        Raises:
            DescriptionError: k below 1, no such query, or so many were not kept that these cannot be told.
        """
        if k < 1:
            refuse(f"TokenScores({self.stage!r}): top(k) needs k of at least 1, got {k}")
        own = (self.position != REST).nonzero().flatten()
        values = self._ranked(query)[own]
        order = values.sort(descending=harmful, stable=True).indices[:k]
        if len(order) < min(k, self.scored) or bool((values[order].abs() < self.largest_left_out).any()):
            certain = int((values[order].abs() >= self.largest_left_out).sum())
            refuse(
                f"TokenScores({self.stage!r}): of {self.scored:,} tokens {self.kept:,} were kept, and only the first "
                f"{certain} of this end are certain; ask for these, or trace(..., tokens=N) with a larger N"
            )
        chosen = own[order].tolist()
        rows = zip(chosen, values[order].tolist(), strict=True)
        return [
            TokenRow(
                int(self.index[row]), int(self.position[row]), int(self.token[row]), score, -score / self.n_examples
            )
            for row, score in rows
        ]

    def ends(self, k: int = 10, *, harmful: bool = True, query: int | None = None) -> list[TokenRow]:
        """`top`, of tokens that are harmful (or helpful) only, and no more than are certain; perhaps none.

        Raises:
            DescriptionError: no such query.
        """
        own = self._ranked(query)[self.position != REST]
        sized = own[own > 0] if harmful else own[own < 0]
        certain = int((sized.abs() >= self.largest_left_out).sum())
        return self.top(min(k, certain), harmful=harmful, query=query) if certain else []

    def table(self) -> Table:
        """The ten tokens at either end, as far as they are certain, ready to be drawn."""
        rows = [row for harmful in (True, False) for row in self.ends(harmful=harmful)]
        return table_of(self.stage, f"{self.kept:,} of {self.scored:,} tokens kept", rows)

    def _ranked(self, query: int | None) -> Tensor:
        if query is None:
            return self.values if self.values.ndim == 1 else self.values.mean(dim=0)
        if self.n_queries is None or not 0 <= query < self.n_queries:
            refuse(f"TokenScores({self.stage!r}): there is no query {query}; queries: {self.n_queries or 'one number'}")
        return self.values[query]

    def __repr__(self) -> str:
        return f"TokenScores({self.stage!r}: {self.kept:,} of {self.scored:,} tokens kept)"


HEADINGS = ("index", "position", "token", SCORE_HEADING, REMOVAL_HEADING)


def table_of(stage: str, what: str, rows: Sequence[TokenRow], words: Sequence[str] = ()) -> Table:
    """Tokens with their scores, ready to be drawn; words: the tokens as text, where that is known."""
    cells = [
        (str(row.index), str(row.position), str(row.token), f"{row.score:+.2e}", f"{row.removal_effect:+.2e}")
        for row in rows
    ]
    if not words:
        return Table(f"{stage}: {what}", HEADINGS, tuple(cells))
    told = tuple((*cell, word) for cell, word in zip(cells, words, strict=True))
    return Table(f"{stage}: {what}", (*HEADINGS, "text"), told, words=frozenset({"text"}))
