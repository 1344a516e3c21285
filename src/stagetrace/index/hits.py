"""What a search finds: the ends of each query's ranking, among the examples that were looked at."""

# pyarrow has no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from stagetrace.errors import refuse
from stagetrace.index.recall import AIM, Recall
from stagetrace.results.files import atomic
from stagetrace.results.ranking import Ranking, joined
from stagetrace.results.sign import SIGN, UNIT
from stagetrace.results.table import Top

__all__ = ["Hits", "joined_hits", "save"]


@final
@dataclass(frozen=True, eq=False)
class Hits:
    """The most harmful and most helpful of a stage's examples that a search looked at.

    ranking: their **exact** scores, those that `trace` computes: positive = harmful; unit: query loss.
    rescored: examples that were scored exactly, for each query; all others were not looked at, and one of them may
        belong in the list: `recall` says how many of the true top a search finds, as measured when the index was built.
    recall: None where it was not measured.
    seconds: of the clock, by part of the search.
    named: what the queries are called in tables and files, such as their examples' indices; by default their places.
    """

    ranking: Ranking
    rescored: int
    recall: Recall | None = None
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    named: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[int, ...]:
        """What each query is called."""
        return self.named or tuple(range(self.ranking.n_queries))

    @property
    def stage(self) -> str:
        return self.ranking.stage

    def top(self, k: int = 10, *, query: int = 0, harmful: bool = True) -> Top:
        """A table of the `k` most harmful, or most helpful, examples of one query that were looked at.

        Raises:
            DescriptionError: more than were kept, or no such query.
        """
        found = self.ranking.top(k, query=query, harmful=harmful)
        which = "most harmful (largest scores)" if harmful else "most helpful (most negative scores)"
        asked = f" (query {self.names[query]})" if len(self.names) > 1 or self.named else ""
        title = f"{self.stage}: {k} {which}{asked} of {self.rescored:,} examples that were scored, exactly"
        return replace(found, title=title)

    def says(self) -> str:
        """What was looked at and what may be missing, in one sentence."""
        n = self.ranking.n_examples
        looked = f"{self.stage}: {self.rescored:,} of {n:,} examples were scored, exactly"
        if self.rescored >= n:
            return f"{looked}: nothing is missing"
        looked += f"; the other {n - self.rescored:,} were not looked at"
        if self.recall is None:
            return f"{looked}; how many of the true top are among them was not measured"
        share = self.recall.at(self.rescored)
        if share is None:
            return f"{looked}; recall is known from {self.recall.rescored[0]:,} on (--rescore)"
        kind = "examples that the basis was not made of" if self.recall.unseen else "all examples"
        words = (
            f"{looked}; recall@{self.recall.top} {share:.3f}: as many of the true {self.recall.top} at either end are "
            f"found, measured with {self.recall.queries} quer{'ies' if self.recall.queries > 1 else 'y'} on {kind}"
        )
        if share >= AIM:
            return words
        return (
            f"{words}. THIS IS LOW: more candidates (--rescore {_more(self.rescored, n):,}), an index of more numbers "
            "(stagetrace index --numbers), or all examples: stagetrace score"
        )


def joined_hits(hits: Sequence[Hits]) -> Hits:
    """Those of several blocks of queries as one; seconds are added up."""
    first = hits[0]
    seconds = {part: sum(each.seconds[part] for each in hits) for part in first.seconds}
    fewest = min(each.rescored for each in hits)
    return replace(first, ranking=joined([each.ranking for each in hits]), rescored=fewest, seconds=seconds)


def _more(rescored: int, n: int) -> int:
    return min(n, 5 * rescored)


def save(found: Mapping[str, Hits], path: Path) -> None:
    """Write all rows of all stages to a `.csv` or `.parquet` file, whole or not at all.

    Columns: stage, query, end ("harmful" or "helpful"), place, index, score, removal_effect; and id, where examples
    have one. Every score is exact.

    Raises:
        DescriptionError: another ending. ResultsError: the file system refused.
    """
    check_ending(path)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("stage", "query", "end", "place", "index", "score", "removal_effect")
    }
    ids = list[str | None]()
    for stage, hits in found.items():
        ranking = hits.ranking
        for end, indices, scores in (
            ("harmful", ranking.harmful, ranking.harmful_scores),
            ("helpful", ranking.helpful, ranking.helpful_scores),
        ):
            for query, row, values in zip(hits.names, indices.tolist(), scores.double().tolist(), strict=True):
                columns["stage"] += [stage] * len(row)
                columns["query"] += [query] * len(row)
                columns["end"] += [end] * len(row)
                columns["place"] += list(range(1, len(row) + 1))
                columns["index"] += row
                columns["score"] += values
                columns["removal_effect"] += [-value / ranking.n_examples for value in values]
                ids += [ranking.named.get(index) for index in row]
    if any(name is not None for name in ids):
        columns["id"] = ids
    says = {stage: hits.says() for stage, hits in found.items()}
    table = pa.table(columns).replace_schema_metadata({"sign": SIGN, "unit": UNIT, **says})
    with atomic(path) as temporary:
        if path.suffix == ".csv":
            pa_csv.write_csv(table, temporary)
        else:
            pq.write_table(table, temporary)


def check_ending(path: Path) -> None:
    """Refuse a file of another kind, before anything is computed for it.

    Raises:
        DescriptionError: says which there are.
    """
    if path.suffix not in (".csv", ".parquet"):
        refuse(f"--out must be a file ending in .csv or .parquet, got {path}")
