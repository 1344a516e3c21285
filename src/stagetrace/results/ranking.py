"""The ends of each query's ranking of one stage's examples, without the scores between them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast, final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.results.parts import Part
from stagetrace.results.sign import UNIT
from stagetrace.results.table import Row, Top, frame
from stagetrace.solvers.base import Solution
from stagetrace.stages.ids import Ids

if TYPE_CHECKING:
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["Ranking", "joined", "ranked"]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """The most harmful and the most helpful examples of one stage, for each query.

    harmful, helpful: examples' indices, `[n_queries, k]`; from the most harmful (largest score) down, and from the most
        helpful (most negative score) up. Of equal scores the smaller index comes first; at the end of the list any may.
    harmful_scores, helpful_scores: their scores, as in `Scores`: d(query loss)/d(epsilon), positive = harmful, unit:
        query loss. The predicted change of the query loss if an example is removed is `-score / n_examples`.
    solution: how the stage was solved, with every query's residual; its value is left out.
    named: the stable ids of the examples that are kept, by their index; empty where they have none.

    Example:
        >>> values = torch.tensor([[0.5, -2.0, 1.0], [0.0, 3.0, -1.0]])
        >>> ranking = ranked("pretrain", [Part(0, values, n_examples=3)], 2)
        >>> ranking.harmful.tolist(), ranking.helpful.tolist()
        ([[2, 0], [1, 0]], [[1, 0], [2, 0]])
        >>> ranking.top(1, query=1).indices
        (1,)
    """

    stage: str
    n_examples: int
    harmful: Tensor
    harmful_scores: Tensor
    helpful: Tensor
    helpful_scores: Tensor
    solution: Solution | None = None
    named: Mapping[int, str] = field(default_factory=dict[int, str])

    def with_ids(self, ids: Ids | None) -> "Ranking":
        """The ranking with the ids of its examples, out of those of the whole stage."""
        kept = torch.cat([self.harmful.flatten(), self.helpful.flatten()]).unique().tolist()
        return self if ids is None else replace(self, named=ids.named(kept))

    @property
    def n_queries(self) -> int:
        return self.harmful.shape[0]

    def top(self, k: int = 10, *, query: int, harmful: bool = True) -> Top:
        """A table of the `k` most harmful, or most helpful, examples of one query.

        Raises:
            DescriptionError: `k` below 1 or more than were kept, or no such query.
        """
        where = f"Ranking({self.stage!r}).top"
        if not 1 <= k <= self.harmful.shape[1]:
            refuse(f"{where}: k must be 1 to {self.harmful.shape[1]}, got {k}; rank again with top={max(1, k)}")
        if not 0 <= query < self.n_queries:
            refuse(f"{where}: query {query} does not exist; type 0 to {self.n_queries - 1}")
        indices, scores = (self.harmful, self.harmful_scores) if harmful else (self.helpful, self.helpful_scores)
        pairs = zip(indices[query, :k].tolist(), scores[query, :k].double().tolist(), strict=True)
        which = "most harmful (largest scores)" if harmful else "most helpful (most negative scores)"
        title = f"{self.stage}: {k} {which} of {self.n_examples:,} examples (query {query})"
        return Top(title, tuple(Row(index, score, -score / self.n_examples) for index, score in pairs), self.named)

    def to_pandas(self) -> "DataFrame":
        """A frame with a row for each query, end and place: query, harmful, place, index, score, removal_effect, id.

        The last one where the examples have ids.

        Raises:
            DescriptionError: pandas is not installed.
        """
        queries, k = self.harmful.shape
        columns: dict[str, list[object]] = {
            name: [] for name in ("query", "harmful", "place", "index", "score", "removal_effect")
        }
        for harmful, indices, scores in (
            (True, self.harmful, self.harmful_scores),
            (False, self.helpful, self.helpful_scores),
        ):
            columns["query"] += torch.arange(queries).repeat_interleave(k).tolist()
            columns["harmful"] += [harmful] * (queries * k)
            columns["place"] += torch.arange(1, k + 1).repeat(queries).tolist()
            columns["index"] += indices.flatten().tolist()
            columns["score"] += scores.double().flatten().tolist()
            columns["removal_effect"] += (-scores.double() / self.n_examples).flatten().tolist()
        if self.named:
            columns["id"] = [self.named[cast(int, index)] for index in columns["index"]]
        return frame(columns)

    def __repr__(self) -> str:
        return (
            f"Ranking({self.stage!r}: the {self.harmful.shape[1]:,} most harmful and most helpful of "
            f"{self.n_examples:,} examples for each of {self.n_queries:,} queries, unit {UNIT})"
        )


def ranked(stage: str, parts: Iterable[Part], k: int) -> Ranking:
    """The ends of the rankings of a matrix that comes part by part; no more than one part is held."""
    ends: dict[bool, tuple[Tensor, Tensor]] = {}
    n_examples = 0
    for part in parts:
        n_examples = part.n_examples
        for harmful in (True, False):
            kept = min(k, part.values.shape[1])
            found = part.values.topk(kept, dim=1, largest=harmful)
            indices, scores = found.indices + part.start, found.values
            if harmful in ends:
                indices, scores = (
                    torch.cat(pair, dim=1) for pair in zip(ends[harmful], (indices, scores), strict=True)
                )
                best = scores.topk(min(k, scores.shape[1]), dim=1, largest=harmful).indices
                indices, scores = indices.gather(1, best), scores.gather(1, best)
            ends[harmful] = (indices, scores)
    (harmful, most), (helpful, least) = (_ordered(*ends[flag], descending=flag) for flag in (True, False))
    return Ranking(stage, n_examples, harmful, most, helpful, least)


def joined(rankings: Sequence[Ranking]) -> Ranking:
    """The rankings of several blocks of queries as one, solutions and all."""
    first, *others = rankings
    if not others:
        return first
    ends = {
        name: torch.cat([getattr(each, name) for each in rankings])
        for name in ("harmful", "harmful_scores", "helpful", "helpful_scores")
    }
    named = {index: name for each in rankings for index, name in each.named.items()}
    told = [each.solution for each in rankings if each.solution is not None]
    if len(told) < len(rankings):
        return replace(first, **ends, named=named, solution=None)
    solution = replace(
        told[0],
        value=torch.cat([each.value for each in told], dim=-1),
        relative_residuals=sum((each.relative_residuals for each in told), ()),
        statuses=sum((each.statuses for each in told), ()),
        products=sum(each.products for each in told),
        checks=sum(each.checks for each in told),
        steps=max(each.steps for each in told),
        notes=tuple(dict.fromkeys(note for each in told for note in each.notes)),
    )
    return replace(first, **ends, named=named, solution=solution)


def _ordered(indices: Tensor, scores: Tensor, *, descending: bool) -> tuple[Tensor, Tensor]:
    """By score, and of equal scores by index."""
    by_index = indices.sort(dim=1)
    scores = scores.gather(1, by_index.indices)
    by_score = scores.sort(dim=1, descending=descending, stable=True)
    return by_index.values.gather(1, by_score.indices), by_score.values
