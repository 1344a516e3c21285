"""Do the scores predict retraining? Predictions, retrainings, and how well they agree."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from stagetrace.checks.finding import Level
from stagetrace.errors import StagetraceWarning, refuse
from stagetrace.parallel import world
from stagetrace.progress import Progress, Silent
from stagetrace.results.jsonable import JSON
from stagetrace.results.lock import refuse_in_use
from stagetrace.stages.chain import Chain
from stagetrace.stages.fingerprint import SCHEME, fingerprint_examples, fingerprint_objective, fingerprint_stage
from stagetrace.stages.modes import in_ordinary_modes
from stagetrace.stages.risk import check_finite
from stagetrace.stages.stage import check_count
from stagetrace.tracing.query import Query
from stagetrace.validation.agreement import Agreement
from stagetrace.validation.control import Control
from stagetrace.validation.estimators import Estimator, Influence
from stagetrace.validation.estimators.estimator import effects_of
from stagetrace.validation.fits import Fit, as_fit, recorded_fit
from stagetrace.validation.fits.fit import described
from stagetrace.validation.reliability import Reliability
from stagetrace.validation.removals import RandomRemovals, Removal, RemovalPlan, TopRemovals, predicted_effects
from stagetrace.validation.retrain import Retraining
from stagetrace.validation.store import Store
from stagetrace.validation.token_masks import TokenNumbers
from stagetrace.validation.workers import Job, default_processes, run_jobs

CHOICES: tuple[RemovalPlan, ...] = (TopRemovals(50), RandomRemovals(50))


@final
@dataclass(frozen=True, eq=False)
class Measured:
    """The result of retraining for one choice of removals.

    choice: its name. removals: the examples of each. by: the part of their weight removed.
    effects: the change of the query loss, of each run: float64 `[runs, removals]`; negative = taking it out helps.
    reliability: how far the runs agree; None for a single run.
    predicted: what each estimator predicts, `[removals]`; agreement: with the mean over runs.
    """

    choice: str
    removals: tuple[Removal, ...]
    by: float
    effects: Tensor
    reliability: Reliability | None
    predicted: Mapping[str, Tensor]
    agreement: Mapping[str, Agreement]

    @property
    def true(self) -> Tensor:
        """The mean effect over runs, `[removals]`."""
        return self.effects.mean(dim=0)


@final
@dataclass(frozen=True, eq=False)
class Validation:
    """How well estimators predict what retraining does.

    stage: whose examples are removed. measured: by choice. units: of each estimator's prediction, None where only the
    ranking means something. retrainings: how many, each of all later stages; seconds: of processes, added up.
    control: where the runs that keep every example ended, beside the model that was traced.
    """

    stage: str
    measured: tuple[Measured, ...]
    units: Mapping[str, str | None]
    retrainings: int
    seconds: float
    control: Control
    predictions: Mapping[str, Tensor] = field(repr=False)

    def __getitem__(self, choice: str) -> Measured:
        for measured in self.measured:
            if measured.choice == choice:
                return measured
        refuse(f"there is no choice '{choice}'; there are: {', '.join(repr(m.choice) for m in self.measured)}")

    @property
    def per_minute(self) -> float:
        """Retrainings a minute of one process."""
        return 60 * self.retrainings / self.seconds if self.seconds else float("nan")


@in_ordinary_modes
def validate(
    chain: Chain,
    query: Query,
    *,
    fit: Any = None,
    stage: str | None = None,
    choices: Sequence[RemovalPlan] = CHOICES,
    estimators: Sequence[Estimator] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    processes: int | None = None,
    together: int = 8,
    tokens: bool = False,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Train the chain again without chosen examples of a stage, and compare with what estimators predicted.

    The stage and all later ones are trained again. Every run is paired with a control that differs in the weights alone
    (0 or 1 in the same batches), and the effect is the difference of their query losses. Random choices do not look at
    any score.

    Args:
        fit: how stages are trained again: one for all or a mapping by stage name, each `Rerun()`, `Resolve()`,
            `Steps(...)` or a function `fit(weights) -> model` (see `stagetrace.validation.fits.CustomTraining`). A
            stage with a recorded training (`Unrolled`) that is given none repeats it, or takes the link's own steps.
        stage: whose examples are removed; the chain's first.
        choices: what is removed. `TopRemovals` uses the first estimator's predictions.
        estimators: what predicts; the multi-stage influence alone if None. The first is the one under test.
        seeds: of the runs, for fits that draw something (batch order, initial values); others run once.
        processes: that share the retrainings; None takes one per core. Accelerators are used from this process alone.
        together: copies in one batched model, the control beside them; for memory or models that `vmap` refuses, 1.
        tokens: remove single tokens in place of examples: the term that predicting a token adds to its example's loss
            is taken out, and its divisor stays, so that the other tokens weigh what they weighed. The stage is trained
            again by `Steps` or `Resolve`; estimators are those that predict tokens: `Influence`, `Random`. Choices
            count tokens.
        out: a folder in which every retraining is kept as it ends; the same call goes on there.

    Returns:
        Predictions, effects and agreements; nothing is left out of them. Warns where training again with every example
        ends at another model than the one traced, see `Control`.

    Raises:
        DescriptionError: no such stage, no fit for one, a query that is not reduced, or settings that do not fit.
        SolveError: a training did not converge or diverged.
        ResultsError: `out` holds other retrainings, or another process writes to it.

    Source: Koh & Liang (2017), section 4; Park et al. (2023), section 2, for groups.
    """
    progress = progress or Silent()
    stage = stage or chain.names[0]
    if query.reduction == "none":
        refuse("validate compares one number per removal; type Query(..., reduction='mean'), got 'none'")
    check_count(together, "validate(together=...)")
    if processes is not None:
        check_count(processes, "validate(processes=...)")
    if world().size > 1:
        refuse("validate shares its work among processes itself; start it without torchrun, with processes=...")
    if out is not None:
        refuse_in_use(out)  # before anything is predicted
    numbers = TokenNumbers.of(chain[stage], progress) if tokens else None
    retraining = Retraining(chain, query, stage, _by_stage(chain, fit), numbers)
    runs = tuple(dict.fromkeys(seeds)) if retraining.is_stochastic else tuple(seeds)[:1]
    if not runs:
        refuse("validate(seeds=...) is empty; type seeds=(0,) for one run")
    predictions, units = _predicted(chain, query, stage, estimators or (Influence(),), progress, tokens=tokens)
    units_removed = len(chain[stage].stage.examples) if numbers is None else len(numbers)
    removals = _chosen(choices, units_removed, next(iter(predictions.values())))
    with Store(Path(out) if out is not None else None, _identity(retraining, progress)) as store:
        jobs = _missing(removals, runs, store, together)
        total = sum(len(job.removals) for job in jobs)
        with progress.task("training again", total, "retrainings") as advance:
            for done in run_jobs(retraining, jobs, processes or default_processes()):
                keys = [(done.job.seed, done.job.by, removal) for removal in done.job.removals]
                store.add(keys, done.losses, done.control, done.seconds)
                advance(len(keys))
    measured = tuple(_measured(choice, found, runs, store, predictions) for choice, found in removals.items())
    if tokens:
        measured = tuple(replace(each, choice=f"{each.choice}, tokens") for each in measured)
    wanted = {(seed, choice.by, r) for seed in runs for choice, found in removals.items() for r in found}
    controls = [store.control([key for key in wanted if key[0] == seed]) for seed in runs]
    trains = any(isinstance(bound.recording, Fit) for bound in chain)  # scores are then taken at what it trained
    traced = None if trains else float(query.loss(chain.last))
    control = Control(traced, torch.stack(controls), retraining.is_stochastic)
    finding = control.finding(stage)
    if finding.level is Level.WARNING:
        warnings.warn(f"validate: {finding.text}", StagetraceWarning, stacklevel=3)
    return Validation(stage, measured, units, len(wanted), store.seconds_of(wanted), control, predictions)


def _measured(
    choice: RemovalPlan, removals: list[Removal], runs: Sequence[int], store: Store, predictions: Mapping[str, Tensor]
) -> Measured:
    effects = torch.stack(
        [torch.stack([store.effect((seed, choice.by, removal)) for removal in removals]) for seed in runs]
    )
    predicted = {name: predicted_effects(effect, removals, choice.by) for name, effect in predictions.items()}
    true = effects.mean(dim=0)
    return Measured(
        choice.name,
        tuple(removals),
        choice.by,
        effects,
        Reliability.of(effects) if len(runs) > 1 else None,
        predicted,
        {name: Agreement.of(values, true) for name, values in predicted.items()},
    )


def _chosen(choices: Sequence[RemovalPlan], examples: int, predicted: Tensor) -> dict[RemovalPlan, list[Removal]]:
    names = [choice.name for choice in choices]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        refuse(f"validate: two choices are called '{repeated[0]}'; they differ in less than their names show: drop one")
    removals = {choice: choice.removals(examples, predicted) for choice in choices}
    for choice, found in removals.items():
        if len(found) < 3:
            refuse(
                f"validate: '{choice.name}' gives {len(found)} removals; figures of agreement need at least 3, and "
                "say little below 20"
            )
    return removals


def _missing(
    removals: Mapping[RemovalPlan, list[Removal]], runs: Sequence[int], store: Store, together: int
) -> list[Job]:
    """What is still to be trained, cut into batched models; the same removal asked for twice is trained once."""
    jobs: list[Job] = []
    for seed in runs:
        for by in dict.fromkeys(choice.by for choice in removals):
            wanted = dict.fromkeys(r for choice, found in removals.items() if choice.by == by for r in found)
            todo = [removal for removal in wanted if (seed, by, removal) not in store]
            jobs += [Job(seed, by, tuple(todo[i : i + together])) for i in range(0, len(todo), together)]
    return jobs


def _predicted(
    chain: Chain, query: Query, stage: str, estimators: Sequence[Estimator], progress: Progress, *, tokens: bool
) -> tuple[dict[str, Tensor], dict[str, str | None]]:
    names = [estimator.name for estimator in estimators]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        refuse(f"validate: two estimators are called '{repeated[0]}'; give one another name=")
    predictions = {
        e.name: effects_of(e, chain, query, stage, progress, tokens=tokens).double().cpu() for e in estimators
    }
    for name, effects in predictions.items():
        check_finite(effects, range(len(effects)), f"estimator '{name}'", "the predicted effect")
    return predictions, {e.name: e.unit for e in estimators}


def _by_stage(chain: Chain, fit: Any) -> dict[str, Fit]:
    """What was given; what was recorded is else repeated."""
    usual = {bound.name: found for bound in chain if (found := recorded_fit(bound)) is not None}
    if isinstance(fit, Mapping):
        chain.check_names(fit, "validate(fit=...)")
        return {**usual, **{name: as_fit(given) for name, given in fit.items()}}
    return usual if fit is None else dict.fromkeys(chain.names, as_fit(fit))


def _identity(retraining: Retraining, progress: Progress) -> dict[str, JSON]:
    """What retrainings depend on, other than what is removed."""
    query, last = retraining.query, retraining.chain.last
    risk, *contrast = query.risks(last)
    removed = {} if retraining.tokens is None else {"removed": f"{len(retraining.tokens):,} tokens"}
    against = {"contrast": fingerprint_examples(contrast[0].examples, progress)} if contrast else {}
    return {
        "fingerprints": SCHEME,
        "stage": retraining.stage,
        **removed,
        "stages": [fingerprint_stage(bound, progress) for bound in retraining.chain.bound_stages],
        "fits": {bound.name: described(retraining.fits[bound.name]) for bound in retraining.later},
        "query": {
            "data": fingerprint_examples(risk.examples, progress),
            "objective": fingerprint_objective(risk.objective, last.stage.model),
            "reduction": query.reduction,
            **against,
        },
    }
