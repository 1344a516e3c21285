"""The protocol of every experiment that compares scores with retraining.

For each seed: prepare (train the stages, or find them), trace (first seed only), then for each variant validate
(retrain without chosen examples), record, draw and write. A killed run goes on where it was: stages, traces and
retrainings are found on disk. A new experiment is one `Experiment(...)` and a row in `experiments/__main__.py`.

OUT/                         the first seed: checkpoints, trace
OUT/seed-N/                  the other seeds
OUT/result.json, OUT/*.png   written anew after every variant, after every seed
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, final

from experiments import agreement_plots, records
from experiments.records import Record
from experiments.settings import Settings
from stagetrace import Chain, Query
from stagetrace.errors import SolveError
from stagetrace.progress import Progress
from stagetrace.validation import Estimator, RemovalPlan, Validation, validate

P = TypeVar("P")


@final
@dataclass(frozen=True, eq=False)
class Prepared:
    """The stages of one seed, trained.

    facts: how training went, by stage, as plain values. states: where each stage's Adam ended.
    data: what they were trained on.
    """

    chain: Chain
    query: Query
    facts: Mapping[str, Any]
    states: Mapping[str, Any] = field(default_factory=dict)
    data: Any = None


@final
@dataclass(frozen=True, eq=False)
class Variant:
    """One chain, how its stages are trained again, without what, and the estimators that are to predict it.

    where: names of the variant, outermost first: data set, link, way of training.
    out: where its retrainings are kept. runs: seeds of the fit. together: copies in one batched model.
    drawn: whether it stands in the figure. record: what to keep of the validation.
    """

    where: tuple[str, ...]
    chain: Chain
    query: Query
    fit: Any
    choices: Sequence[RemovalPlan]
    estimators: Sequence[Estimator]
    out: Path
    runs: Sequence[int] = (0,)
    together: int = 8
    processes: int | None = None
    drawn: bool = True
    record: Callable[[Validation], Record] = records.of_validation

    def validate(self, progress: Progress) -> Validation:
        return validate(
            self.chain,
            self.query,
            fit=self.fit,
            choices=self.choices,
            estimators=self.estimators,
            seeds=self.runs,
            processes=self.processes,
            together=self.together,
            out=self.out,
            progress=progress,
        )


@final
@dataclass(eq=False)
class Run:
    """What one call of an experiment has found so far.

    training: of each seed, how its stages were trained. traced: of the first seed.
    found: for each variant its records, a seed each. failed: why a variant of a seed did not converge.
    """

    settings: Settings
    training: dict[int, Any] = field(default_factory=dict)
    traced: Record = field(default_factory=dict)
    found: dict[tuple[str, ...], list[Record]] = field(default_factory=dict)
    validations: dict[tuple[str, ...], list[Validation]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def nested(self) -> Record:
        """`found`, a dictionary for each part of where."""
        tree = Record()
        for where, seeds in self.found.items():
            branch = tree
            for name in where[:-1]:
                branch = branch.setdefault(name, {})
            branch[where[-1]] = seeds
        return tree


@final
@dataclass(frozen=True)
class Experiment(Generic[P]):
    """A row of the table of experiments.

    prepare: train (or find) the stages of one seed, whose settings it is given. training: what to tell of it.
    variants: what to validate of a seed. trace: what to tell of the first seed's trace.
    fields: the experiment's own part of `result.json`.
    headline: the estimator that is drawn. draw: a figure besides.
    """

    name: str
    seeds: int
    prepare: Callable[[Settings, Progress], P]
    training: Callable[[P], Any]
    variants: Callable[[P, Settings], Iterable[Variant]]
    fields: Callable[[Run], Record]
    headline: str = ""
    trace: Callable[[P, Settings, Progress], Record] | None = None
    draw: Callable[[Run], None] = lambda run: None

    def __call__(self, settings: Settings, progress: Progress) -> None:
        run = Run(settings)
        for seed in range(settings.seed, settings.seed + self.seeds):
            here = settings.of_seed(seed)
            prepared = self.prepare(here, progress)
            run.training[seed] = self.training(prepared)
            if seed == settings.seed and self.trace is not None:
                run.traced = self.trace(prepared, here, progress)
            for variant in self.variants(prepared, here):
                try:
                    validation = variant.validate(progress)
                except SolveError as failure:
                    run.failed[", ".join([*variant.where, f"seed {seed}"])] = str(failure)
                    continue
                found = {"seed": seed, **variant.record(validation)}
                run.found.setdefault(variant.where, []).append(found)
                if variant.drawn:
                    run.validations.setdefault(variant.where, []).append(validation)
                records.write_result(self.name, run.settings, self.fields(run))
            records.write_result(self.name, run.settings, self.fields(run))
            self._draw(run)

    def _draw(self, run: Run) -> None:
        if self.headline:
            rows: Mapping[str, Any] = {
                ", ".join(where) or self.name: [found.measured for found in several]
                for where, several in run.validations.items()
            }
            agreement_plots.scatter(run.settings.out / "agreement.png", rows, self.headline)
        self.draw(run)
