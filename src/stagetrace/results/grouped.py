"""Scores of groups of examples: of a document that lies in several rows, of a source, of whatever bears one name."""

# pyarrow has no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.results.sign import UNIT
from stagetrace.results.table import Row, Top, frame
from stagetrace.stages.ids import Ids, texts_of

if TYPE_CHECKING:
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["Grouped", "grouped"]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Grouped:
    """The sums of the scores of each group's examples, groups in the order in which they first appear.

    A score is a derivative in an example's weight, so the sum over a group is the derivative in a weight that all its
    examples share. Sign: positive = harmful. Unit: query loss.

    stage: whose examples. names: of the groups.
    values: float64 `[n_groups]`, or `[n_queries, n_groups]` for a query that was not reduced.
    counts: how many examples each group has, int64 `[n_groups]`. n_examples: how many the stage has.

    Example:
        >>> from stagetrace.results import Scores
        >>> found = Scores("pretrain", torch.tensor([0.5, -2.0, 1.0]).double()).grouped(["a", "b", "a"])
        >>> found
        Grouped('pretrain': 2 groups of 3 examples, unit query loss, + harmful: largest +1.500e+00, smallest -2.000e+00)
        >>> found.values.tolist(), found.counts.tolist(), found.top(1).ids
        ([1.5, -2.0], [2, 1], ('a',))
    """

    stage: str
    names: Ids
    values: Tensor
    counts: Tensor
    n_examples: int

    @property
    def n_queries(self) -> int | None:
        """How many queries the matrix has; None where the query was reduced to one number."""
        return self.values.shape[0] if self.values.ndim == 2 else None

    @property
    def removal_effect(self) -> Tensor:
        """The predicted change of the query loss if a whole group were removed, in the shape of `values`.

        `-values / n_examples`, to first order. Sign: negative = removing it helps. Unit: query loss.
        """
        return -self.values / self.n_examples

    @property
    def per_group(self) -> Tensor:
        """One sum a group, `[n_groups]`: the values, or for a matrix their mean over the queries."""
        return self.values if self.values.ndim == 1 else self.values.mean(dim=0)

    def top(self, k: int = 10, *, harmful: bool = True, query: int | None = None) -> Top:
        """The `k` groups with the largest sums (the most harmful), or with the smallest (the most helpful).

        k: how many; all groups if there are fewer. Ties go to the group that appears first.
        harmful: True for the largest sums first, False for the most negative first.
        query: of a matrix, the query to rank by; None ranks by the mean over queries.

        Raises:
            DescriptionError: `k` below 1, or no such query.
        """
        where = f"Grouped({self.stage!r}).top"
        if k < 1:
            refuse(f"{where}: k must be at least 1, got {k}")
        if query is not None and (self.n_queries is None or not 0 <= query < self.n_queries):
            some = (
                "the query was reduced to one number" if self.n_queries is None else f"type 0 to {self.n_queries - 1}"
            )
            refuse(f"{where}: there is no query {query}; {some}")
        ranked = self.per_group if query is None else self.values[query]
        order = torch.sort(ranked, descending=harmful, stable=True).indices[:k]
        places, sums = cast("list[int]", order.tolist()), cast("list[float]", ranked[order].tolist())
        rows = tuple(Row(place, score, -score / self.n_examples) for place, score in zip(places, sums, strict=True))
        which = "most harmful (largest sums)" if harmful else "most helpful (most negative sums)"
        over = "" if self.n_queries is None else f" (query {query})" if query is not None else " (mean over queries)"
        title = f"{self.stage}: {len(rows)} {which} of {len(self.names):,} groups of {self.n_examples:,} examples{over}"
        return Top(title, rows, self.names.named(places))

    def to_pandas(self) -> "DataFrame":
        """A frame with a row a group: id, examples, score, removal_effect; for a matrix, means over the queries.

        Raises:
            DescriptionError: pandas is not installed.
        """
        sums = self.per_group
        columns: dict[str, Any] = {"id": list(self.names), "examples": self.counts.tolist(), "score": sums.tolist()}
        return frame({**columns, "removal_effect": (-sums / self.n_examples).tolist()})

    def __repr__(self) -> str:
        sums = self.per_group
        queries = "" if self.n_queries is None else f" x {self.n_queries:,} queries, mean over queries"
        return (
            f"Grouped({self.stage!r}: {len(self.names):,} groups of {self.n_examples:,} examples{queries}, "
            f"unit {UNIT}, + harmful: largest {sums.max().item():+.3e}, smallest {sums.min().item():+.3e})"
        )


def grouped(stage: str, values: Tensor, groups: Iterable[Any]) -> Grouped:
    """Sum scores `[n]` or `[n_queries, n]` over groups; groups: the name of each example's, a text or a whole number.

    Raises:
        DescriptionError: another number of names than examples.
        DataError: a name that is no text or whole number.
    """
    where = f"Scores({stage!r}).grouped"
    encoded = texts_of(groups, where, "a group's name").dictionary_encode()
    n = values.shape[-1]
    if len(encoded) != n:
        refuse(f"{where}: there must be the name of a group for each of {n:,} examples, got {len(encoded):,}")
    codes = torch.from_numpy(encoded.indices.to_numpy().astype("int64"))
    names = Ids(encoded.dictionary, where, "groups")
    sums = torch.zeros((*values.shape[:-1], len(names)), dtype=torch.float64)
    return Grouped(stage, names, sums.index_add_(-1, codes, values.double()), codes.bincount(minlength=len(names)), n)
