"""The check: retraining without what was dropped, and without as many examples drawn at random."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, final

import torch
from torch import Tensor

from stagetrace.curate.curation import Curation
from stagetrace.curate.groups import by_label
from stagetrace.errors import refuse
from stagetrace.progress import Progress, Silent
from stagetrace.results import JSON, UNIT
from stagetrace.results.jsonable import differences, format_differences, leaves_named, to_json
from stagetrace.stages.chain import Chain
from stagetrace.stages.fingerprint import NOT_TAKEN
from stagetrace.stages.stage import check_count
from stagetrace.tracing.describe import describe
from stagetrace.tracing.query import Query
from stagetrace.validation import RemovalPlan, validate
from stagetrace.validation.estimators.estimator import Precomputed
from stagetrace.validation.removals import Removal

RANDOM = 10
"""Random sets beside what was dropped."""


@final
@dataclass(frozen=True, eq=False)
class Verified:
    """What retraining showed of a curation.

    predicted: the change of the query loss that the scores predict for what was dropped; random_predicted: `[sets]`,
        for each random set of as many examples.
    effects: `[runs]`, random_effects: `[runs, sets]`: the true changes, each against a run that keeps every example.
    retrainings: how many, each of all later stages; seconds: of processes, added up.
    Sign: negative = leaving them out helps. Unit: query loss.
    """

    predicted: float
    effects: Tensor
    random_predicted: Tensor
    random_effects: Tensor
    retrainings: int
    seconds: float

    @property
    def true(self) -> float:
        """The true change of the query loss without what was dropped, the mean over runs; negative = it helped."""
        return self.effects.mean().item()

    @property
    def random_true(self) -> Tensor:
        """The same of each random set, `[sets]`."""
        return self.random_effects.mean(dim=0)

    @property
    def random_better(self) -> int:
        """How many random sets left a query loss as low as what was dropped, or lower."""
        return int((self.random_true <= self.true).sum().item())

    def record(self) -> dict[str, object]:
        """Every number, as curation.json holds it."""
        random = zip(self.random_predicted.tolist(), self.random_effects.mT.tolist(), strict=True)
        return {
            "predicted_change": self.predicted,
            "true_change": self.true,
            "true_change_of_each_run": self.effects.tolist(),
            "random_sets": [{"predicted_change": each, "true_change_of_each_run": true} for each, true in random],
            "random_mean_change": self.random_true.mean().item(),
            "random_sets_as_good": self.random_better,
            "retrainings": self.retrainings,
            "seconds": self.seconds,
        }


@final
@dataclass(frozen=True)
class FixedSets(RemovalPlan):
    """Sets of examples that are known already: first what was dropped, then the random ones."""

    sets: tuple[Removal, ...]
    by: float = 1.0

    @property
    def name(self) -> str:
        return f"{len(self.sets[0])} dropped, and {len(self.sets) - 1} random sets of as many"

    def removals(self, examples: int, predicted: Tensor) -> list[Removal]:
        del examples, predicted
        return list(self.sets)


def verify(
    curation: Curation,
    chain: Chain,
    query: Query,
    *,
    fit: Any,
    random: int = RANDOM,
    seed: int = 0,
    seeds: Sequence[int] = (0, 1, 2),
    processes: int | None = None,
    together: int = 8,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Train the stage and all later ones again without what was dropped, and without random sets of as many examples.

    What is left out has weight 0 in the same batches; the number of examples that a mean divides by stays. A query that
    was not reduced counts by its mean, as its scores do.

    Args:
        chain, query: those that were traced; their fingerprints are compared with the run's.
        fit, seeds, processes, together, out: as for `stagetrace.validation.validate`.
        random: how many random sets, drawn by `seed` before anything is trained; where classes were balanced, with as
            many of each class as were dropped.

    Raises:
        DescriptionError: another chain or query than was traced, fewer than 2 random sets, or a fit that does not fit.
        SolveError: a training did not converge or diverged.
        ResultsError: `out` holds other retrainings.
    """
    check_same(curation, chain, query, progress)
    scores, sets = curation.scores, (curation.drop, *random_sets(curation, random, seed))
    validation = validate(
        chain,
        replace(query, reduction="mean") if query.reduction == "none" else query,
        fit=fit,
        stage=curation.stage,
        choices=[FixedSets(sets)],
        estimators=[Precomputed("multi-stage influence", UNIT, -scores.per_example / scores.n_examples)],
        seeds=seeds,
        processes=processes,
        together=together,
        out=out,
        progress=progress,
    )
    measured = validation.measured[0]
    predicted = next(iter(measured.predicted.values()))
    return Verified(
        predicted[0].item(),
        measured.effects[:, 0],
        predicted[1:],
        measured.effects[:, 1:],
        validation.retrainings,
        validation.seconds,
    )


def random_sets(curation: Curation, count: int, seed: int) -> tuple[Removal, ...]:
    """`count` sets of as many examples as were dropped, of each balanced class as many, without a look at the scores.

    Raises:
        DescriptionError: fewer than 2.
    """
    check_count(count, "curate.verify(random=...)")
    if count < 2:
        refuse("curate.verify: one random set says nothing about chance; type random=10 (--random 10), at least 2")
    generator = torch.Generator().manual_seed(seed)
    labels = curation.labels or [None] * curation.scores.n_examples
    quotas = {label: len(indices) for label, indices in by_label([labels[i] for i in curation.drop]).items()}
    members = by_label(labels)
    sets = list[Removal]()
    for _ in range(count):
        drawn = list[int]()
        for label, quota in quotas.items():
            order = torch.randperm(len(members[label]), generator=generator)[:quota]
            drawn += [members[label][int(place)] for place in order]
        sets.append(tuple(sorted(drawn)))
    return tuple(sets)


def check_same(curation: Curation, chain: Chain, query: Query, progress: Progress | None = None) -> None:
    """Refuse a chain or a query other than the one that was traced.

    Raises:
        DescriptionError: the stage has another number of examples, or a model, a data set or a setting differs.
    """
    chain.check_names([curation.stage], "curate.verify")
    examples = len(chain[curation.stage].stage.examples)
    if examples != curation.scores.n_examples:
        refuse(
            f"curate.verify: stage '{curation.stage}' has {examples:,} examples, but {curation.scores.n_examples:,} "
            "scores; give the chain that was traced"
        )
    read = all(value != NOT_TAKEN for _, value in leaves_named(curation.run, "sha256"))
    now = describe(chain, query, {}, {}, (), parts=False, progress=progress or Silent(), read=read)
    here = cast("Mapping[str, JSON]", to_json(now, "chain"))
    asked = [key for key in ("stages", "query") if key in curation.run]
    if asked and curation.run.get("fingerprints") != here["fingerprints"]:
        refuse(
            "curate.verify: the run was made by an older stagetrace, whose record does not say enough to be compared "
            "with this chain; score it again, in another folder"
        )
    changed = differences({key: curation.run[key] for key in asked}, {key: here[key] for key in asked})
    if changed:
        refuse(
            "curate.verify: this is not what was traced; it differs in (traced -> here):\n"
            f"{format_differences(changed)}\ngive the TARGET of the run, or score this one first"
        )
