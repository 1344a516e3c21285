"""What a report says, as plain values: no HTML, no files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from stagetrace.checks.finding import Finding
from stagetrace.report.attachments import Attachments
from stagetrace.report.collect import rankings
from stagetrace.report.metadata import Metadata, at, settings, stage_metadata
from stagetrace.report.numbers import number, percent, signed
from stagetrace.report.preview import Preview
from stagetrace.report.previews import Previews
from stagetrace.report.reach import reach
from stagetrace.report.transfer import Transfer, concentration, percentiles
from stagetrace.results import Scores, TokenScores, Trace
from stagetrace.solvers.base import Solution


@final
@dataclass(frozen=True)
class Row:
    """One example in one ranking.

    query: whose ranking; None ranks by the query as a whole.
    percentile: of the stage's examples, how many per cent have a smaller score; equal ones and itself count by half.
    via_shared, via_head: the paper's two parts of the score; None where they were not kept.
    name: the example's stable id; "" where it has none.
    """

    stage: str
    query: int | None
    index: int
    score: float
    removal_effect: float
    percentile: float
    via_shared: float | None = None
    via_head: float | None = None
    name: str = ""


@final
@dataclass(frozen=True)
class StageView:
    """A stage: what its scores say as a whole, and how it was solved."""

    scores: Scores
    transfer: Transfer
    solution: Solution | None
    metadata: Metadata

    @staticmethod
    def of(trace: Trace, name: str) -> "StageView":
        scores = trace[name]
        metadata = stage_metadata(trace, name)
        return StageView(scores, Transfer.of(scores.per_example), trace.solutions.get(name), metadata)

    @property
    def name(self) -> str:
        return self.scores.stage

    @property
    def harmful(self) -> int:
        return int((self.scores.per_example > 0).sum())

    @property
    def share_harmful(self) -> str:
        return percent(self.scores.share_harmful)

    @property
    def concentration(self) -> str:
        return percent(concentration(self.scores.per_example))

    @property
    def top_count(self) -> int:
        """How many examples one per cent is, at least one."""
        return max(1, -(-self.scores.n_examples // 100))

    @property
    def largest(self) -> str:
        return signed(float(self.scores.per_example.max()))

    @property
    def smallest(self) -> str:
        return signed(float(self.scores.per_example.min()))

    @property
    def parts(self) -> tuple[str, str] | None:
        """The shares of the sum of sizes that came through shared parameters, and through the head."""
        shared, head = self.scores.via_shared, self.scores.via_head
        if shared is None or head is None:
            return None
        sizes = [float((part if part.ndim == 1 else part.mean(dim=0)).abs().sum()) for part in (shared, head)]
        whole = sum(sizes) or 1.0
        return percent(sizes[0] / whole), percent(sizes[1] / whole)

    @property
    def spectrum(self) -> tuple[float, ...]:
        """Estimates of the curvature's eigenvalues, ascending; empty where the solver gives none."""
        spectrum = None if self.solution is None else self.solution.spectrum
        return () if spectrum is None else spectrum.ritz

    @property
    def solving(self) -> str:
        """The residual and the status, in words."""
        if self.solution is None:
            return "not recorded"
        residual = f"relative residual {number(self.solution.relative_residual)}"
        if self.solution.converged:
            return f"converged, {residual}"
        return f"NOT CONVERGED ({self.solution.status.value}), {residual}, asked for {number(self.solution.tolerance)}"


@final
@dataclass(frozen=True)
class Report:
    """Everything that is shown.

    n_queries, query_loss: of the whole query; None where neither the scores nor previews say it.
    command: what made the run; "" where that was not kept.
    rows: the ends of every ranking, each in its order: the most harmful first, then the most helpful.
    contrast: examples of the query's contrast, whose loss is taken off; None where there was none.
    tokens: scores of tokens by stage, where they were kept.
    reach: of each stage how large a removal its scores hold for, where a training was recorded; leads the report.
    """

    stages: tuple[StageView, ...]
    reduction: str
    n_queries: int | None
    query_loss: float | None
    rows: tuple[Row, ...]
    queries: tuple[Preview, ...]
    previews: Mapping[tuple[str | None, int], Preview]
    versions: Mapping[str, str]
    settings: Metadata
    command: str = ""
    attachments: Attachments = field(default_factory=Attachments)
    reach: tuple[Finding, ...] = ()
    contrast: int | None = None
    tokens: Mapping[str, TokenScores] = field(default_factory=dict[str, TokenScores])

    @staticmethod
    def of(trace: Trace, previews: Previews | None = None, attachments: Attachments | None = None) -> "Report":
        """The report of a run, with what its examples look like and what else lies in its folder."""
        kept = previews or Previews()
        queries = tuple(item for item in kept.items if item.stage is None)
        ranked = [item.index for item in queries]
        rows = [row for scores in trace.scores.values() for row in rows_of(scores, ranked)]
        found = next((scores.n_queries for scores in trace.scores.values()), None)
        return Report(
            stages=tuple(
                StageView(
                    scores, Transfer.of(scores.per_example), trace.solutions.get(name), stage_metadata(trace, name)
                )
                for name, scores in trace.scores.items()
            ),
            reduction=str(at(trace.description, "query", "reduction") or ("mean" if found is None else "none")),
            n_queries=kept.facts.get("query_examples", found),
            query_loss=kept.facts.get("query_loss"),
            rows=tuple(rows),
            queries=queries,
            previews=kept.by_place(),
            versions=trace.versions,
            settings=settings(trace),
            command=kept.facts.get("command", ""),
            attachments=attachments or Attachments(),
            reach=reach(trace, (attachments or Attachments()).findings),
            contrast=trace.contrast,
            tokens=trace.tokens,
        )

    @property
    def names(self) -> str:
        """The stages and the query, in the order of training."""
        return " → ".join([*(stage.name for stage in self.stages), "query"])


def rows_of(scores: Scores, queries: Sequence[int]) -> list[Row]:
    """The ends of the ranking by the whole query, and of those by single queries where their scores were kept.

    The harmful end holds harmful examples only (score above 0), the helpful end helpful ones.
    """
    return [row for query, count in rankings(scores, queries) for row in _ranking(scores, query, count)]


def _ranking(scores: Scores, query: int | None, count: int) -> list[Row]:
    parts = [
        None if part is None else part if part.ndim == 1 else part.mean(dim=0) if query is None else part[query]
        for part in (scores.values, scores.via_shared, scores.via_head)
    ]
    values, shared, head = parts
    assert values is not None
    ends = [scores.top(count, harmful=harmful, query=query) for harmful in (True, False)]
    chosen = [row for row in ends[0] if row.score > 0] + [row for row in ends[1] if row.score < 0]
    named = {**ends[0].named, **ends[1].named}
    placed = percentiles(values, torch.tensor([row.index for row in chosen], dtype=torch.long)).tolist()
    return [
        Row(
            scores.stage,
            query,
            *row,
            percentile,
            None if shared is None else float(shared[row.index]),
            None if head is None else float(head[row.index]),
            named.get(row.index, ""),
        )
        for row, percentile in zip(chosen, placed, strict=True)
    ]
