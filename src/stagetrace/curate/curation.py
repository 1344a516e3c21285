"""`curate`: what is kept and dropped of a stage's examples, and what dropping is predicted to change."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

from stagetrace.curate.groups import GroupTotal, Labels, balanced, totals, validated_labels
from stagetrace.curate.rules import Rule
from stagetrace.errors import refuse
from stagetrace.results import JSON, Scores, Trace

if TYPE_CHECKING:
    from stagetrace.curate.rows import Rows


@final
@dataclass(frozen=True)
class ClassCount:
    """How many examples of a class there are, and how many of them are dropped."""

    name: str
    examples: int
    dropped: int


@final
@dataclass(frozen=True, eq=False, repr=False)
class Curation:
    """Which examples of a stage to train on next.

    scores: of the stage; positive = harmful; unit: query loss.
    rule: by which examples were dropped.
    keep, drop: indices in the stage's data set, ascending.
    classes: of the labels that were balanced, in the order in which they first appear; empty without.
    groups: totals by source, the most harmful first; empty without.
    run: the fingerprints and settings of the trace; folder: where it lies, as typed, or None.
    """

    scores: Scores
    rule: Rule
    keep: tuple[int, ...]
    drop: tuple[int, ...]
    classes: tuple[ClassCount, ...] = ()
    groups: tuple[GroupTotal, ...] = ()
    run: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    folder: str | None = None
    labels: Labels = ()

    @property
    def stage(self) -> str:
        """Whose examples they are."""
        return self.scores.stage

    @property
    def predicted(self) -> float:
        """The predicted change of the query loss if all of `drop` were removed: the sum of their removal effects.

        To first order, and for the query that was traced. Negative = removing them helps. Unit: query loss.
        """
        return self.scores.per_example[list(self.drop)].sum().item() / -self.scores.n_examples

    @property
    def helpful_dropped(self) -> int:
        """How many of the dropped examples have a negative score: the rule asked for more than are harmful."""
        return int((self.scores.per_example[list(self.drop)] < 0).sum().item())

    def write(
        self, out: str | Path, data: "Rows | None" = None, as_: Literal["indices", "parquet", "hf"] | None = None
    ) -> list[Path]:
        """Write the index lists, the note and the filtered data set to a new folder; see `curate.write.write`.

        out: a new or empty folder, or one that holds this same curation.
        data: the rows that the stage's examples were made of, for a filtered copy of them. Of a larger corpus, or one
            in another order, these are `matched(rows, curation.scores)`.
        as_: what is written of them: nothing ("indices"), one Parquet file, or a folder of the `datasets` library; None
            is "parquet" where there are data.

        Raises:
            ResultsError: the folder holds something else, or the file system refused.
            DescriptionError: another number of rows than the stage has examples, or no data for a filtered copy.
        """
        from stagetrace.curate.record import Record  # which knows a Curation
        from stagetrace.curate.write import write

        return write(Record(self, data, as_ or ("indices" if data is None else "parquet")), Path(out))

    def __repr__(self) -> str:
        return (
            f"Curation('{self.stage}', {self.rule.words}: {len(self.drop):,} of {self.scores.n_examples:,} dropped, "
            f"predicted change of the query loss {self.predicted:+.3e}, - helps)"
        )


def curate(
    run: Trace | str | Path,
    *,
    stage: str | None = None,
    rule: Rule,
    classes: Labels | None = None,
    groups: Labels | None = None,
) -> Curation:
    """Choose the examples of a stage to train on next, by their scores.

    Args:
        run: a trace, or the folder of one. A matrix of scores counts by its mean over the queries.
        stage: whose examples; the chain's first stage that was scored if None.
        rule: `Drop(0.1)`, `DropAbove(0.0)` or `KeepTop(1000)`. Of equal scores the smaller indices go first.
        classes: one label an example: the same share of each class is dropped, so that their balance stays.
        groups: one source an example, for totals by source.

    Raises:
        DescriptionError: no such stage, a rule that drops nothing or everything, labels that do not fit the examples,
            or a threshold together with `classes`.
        ResultsError: the folder cannot be read as a run.

    Example:
        >>> import torch
        >>> from stagetrace.curate import Drop, curate
        >>> trace = Trace({"pretrain": Scores("pretrain", torch.tensor([0.5, -2.0, 1.0, 0.1]).double())})
        >>> curation = curate(trace, rule=Drop(0.5))
        >>> curation
        Curation('pretrain', --drop 50%: 2 of 4 dropped, predicted change of the query loss -3.750e-01, - helps)
        >>> curation.keep, curation.drop
        ((1, 3), (0, 2))
    """
    trace = run if isinstance(run, Trace) else Trace.load(run)
    scores = chosen(trace, stage)
    if not isinstance(rule, Rule):
        refuse(f"curate: rule must be Drop(0.1), DropAbove(0.0) or KeepTop(1000), got {rule!r}")
    labels = () if classes is None else validated_labels(classes, scores.n_examples, "curate(classes=...)")
    sources = () if groups is None else validated_labels(groups, scores.n_examples, "curate(groups=...)")
    drop = _dropped(scores, rule, labels)
    gone = set(drop)
    return Curation(
        scores,
        rule,
        tuple(index for index in range(scores.n_examples) if index not in gone),
        tuple(drop),
        _counts(labels, drop),
        totals(scores.per_example, sources, drop) if sources else (),
        trace.description,
        None if isinstance(run, Trace) else str(run),
        labels,
    )


def chosen(trace: Trace, stage: str | None) -> Scores:
    """The scores of the stage that is curated: the first one that was scored, if none is named.

    Raises:
        DescriptionError: no such stage, or none was scored.
    """
    if not len(trace):
        refuse("curate: no stage of this run has scores; trace it again with of=STAGE")
    return trace[next(iter(trace)) if stage is None else stage]


def _dropped(scores: Scores, rule: Rule, classes: Labels) -> list[int]:
    values = scores.per_example
    if not classes:
        return rule.choose(values, rule.count(values))
    if not rule.shares_classes:
        refuse(
            f"{rule.words} already fixes how many of each class are dropped, so the classes cannot be balanced; "
            "type --drop or --keep-top with --balance"
        )
    return balanced(values, rule, classes)


def _counts(classes: Labels, drop: list[int]) -> tuple[ClassCount, ...]:
    there, gone = Counter(classes), Counter(classes[index] for index in drop) if classes else Counter[object]()
    return tuple(ClassCount(str(name), examples, gone[name]) for name, examples in there.items())
