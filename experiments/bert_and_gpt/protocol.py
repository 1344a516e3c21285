"""Chains of language models and classifiers: trained, traced to texts, and compared with retraining without groups.

Groups of a tenth of the first stage's texts are drawn by the seed before anything is scored. Each is left out of the
first stage, both stages are trained on from where they were (Adam with its saved state, a constant small rate), and the
change of the mean test loss is set beside what the scores predict; every run is paired with a control of the same
batches, and several orders of the batches are averaged.

OUT/checkpoints, OUT/run     first seed: stages, traces
OUT/seed-N/checkpoints       the stages of the other seeds
OUT/retrained/CHAIN-seed-N   every retraining, kept as it ends
OUT/result.json              written anew after each part
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from experiments.bert_and_gpt.kept_influence import KeptInfluence
from experiments.bert_and_gpt.models import embedding
from experiments.bert_and_gpt.on_texts import OnTexts
from experiments.bert_and_gpt.report import DEFAULT, POSITIVE, kept_as, settings_by_name, traced
from experiments.bert_and_gpt.stages import FINETUNE, PRETRAIN, Recipe, Trained, folder_of, train_all
from experiments.intervals import over_seeds
from experiments.other_alpha import WithAlpha, alpha_of_steps
from experiments.result import write_result
from experiments.settings import Settings
from stagetrace import Chain, Identity
from stagetrace.progress import Progress
from stagetrace.validation import (
    BM25,
    Adam,
    EmbeddingSimilarity,
    Estimator,
    GradientDot,
    Groups,
    Influence,
    Random,
    SingleStage,
    Steps,
    Validation,
    validate,
)

OURS, GAUSS_NEWTON = "multi-stage influence", "multi-stage, Gauss-Newton + 0.1"
OF_STEPS = "multi-stage, Gauss-Newton + 0.1, alpha of the steps"
IDENTITY = "identity curvature"
FIGURES = ("pearson_r", "spearman_r", "slope", "without_largest")


@final
@dataclass(frozen=True)
class Plan:
    """One experiment of this protocol.

    chains: trained and traced in the first seed. validated: those among them that are compared with retraining.
    again: steps of each stage when trained again. rate: Adam's, then. groups: how many; share: of the first stage.
    orders: batch orders that are averaged. curvature_examples: that each stage's curvature is averaged over.
    """

    name: str
    recipe: Recipe
    chains: tuple[str, ...]
    validated: tuple[str, ...]
    again: Mapping[str, int]
    rate: float = 3e-4
    groups: int = 16
    share: float = 0.1
    orders: int = 2
    seeds: int = 3
    together: int = 8
    curvature_examples: int = 128


def run(plan: Plan, settings: Settings, progress: Progress) -> None:
    """Train, trace, train again without groups, compare; a killed run goes on where it was."""
    started = time.perf_counter()
    chains: dict[str, Any] = {}
    training: dict[str, Any] = {}
    validation: dict[str, list[dict[str, Any]]] = {name: [] for name in plan.validated}

    def write() -> None:
        _write(plan, settings, chains, training, validation, time.perf_counter() - started)

    for seed in range(settings.seed, settings.seed + plan.seeds):
        is_first = seed == settings.seed
        here = replace(settings, seed=seed, out=settings.out if is_first else settings.out / f"seed-{seed}")
        both = train_all(plan.recipe, here, plan.chains if is_first else plan.validated, progress)
        training[str(seed)] = {
            stage: {what: value for what, value in said.items() if what != "given"} for stage, said in both.said.items()
        }
        write()
        for name in plan.validated:
            found = compared(plan, settings, here, name, both, progress)
            validation[name].append({"seed": seed, **_measured(found)})
            write()
        for name in plan.chains if is_first else ():
            chains[name] = traced(name, both, here, plan.curvature_examples, progress)
            write()


def compared(
    plan: Plan, settings: Settings, here: Settings, name: str, both: Trained, progress: Progress
) -> Validation:
    """Groups left out of the first stage of a chain, and what every estimator said of them.

    here: the settings of this seed, whose folder keeps its traces; settings: those of the whole experiment.
    """
    chain = both.chains[name]
    return validate(
        chain,
        both.queries[name],
        fit=fits(plan, name, both),
        choices=[Groups(plan.share, plan.groups, seed=here.seed)],
        estimators=estimators(plan, chain, here.seed, here.out / "run" / name),
        seeds=range(plan.orders),
        processes=1,
        together=plan.together,
        out=settings.out / "retrained" / f"{name}-seed-{here.seed}",
        progress=progress,
    )


def fits(plan: Plan, name: str, both: Trained) -> dict[str, Steps]:
    """How each stage of a chain is trained on."""
    return {
        stage: Steps(Adam(plan.rate, state=both.states[folder_of(name, stage)]), plan.again[stage], _batch(plan))
        for stage in both.chains[name].names
    }


def estimators(plan: Plan, chain: Chain, seed: int, folder: Path) -> list[Estimator]:
    """The Hessian with a damping from its spectrum, a positive curvature, the controls; traces kept in `folder`."""
    choices = settings_by_name(chain, plan.curvature_examples, seed)
    default, positive = choices[DEFAULT], choices[POSITIVE]
    of_steps: list[Estimator] = []
    last = chain.stages[-1]
    if last.link is not None and "alpha" in last.link.settings:
        inner = KeptInfluence(folder / "alpha-of-steps", *positive, GAUSS_NEWTON)
        of_steps = [WithAlpha(alpha_of_steps(plan.rate, plan.again[last.name]), inner, OF_STEPS)]
    return [
        KeptInfluence(folder / kept_as(DEFAULT), *default, OURS),
        KeptInfluence(folder / kept_as(POSITIVE), *positive, GAUSS_NEWTON),
        *of_steps,
        Influence(Identity(), name=IDENTITY),
        SingleStage(*positive),
        GradientDot(),
        EmbeddingSimilarity(embedding),
        OnTexts(BM25("text")),
        Random(seed),
    ]


def _batch(plan: Plan) -> int:
    return plan.recipe.pretraining.batch


def _measured(validation: Validation) -> dict[str, Any]:
    """One seed's numbers; effects: negative = leaving the group out helps; unit: query loss."""
    (groups,) = validation.measured
    return {
        "groups": len(groups.removals),
        "examples_in_a_group": len(groups.removals[0]),
        "estimators": {name: agreement.record() for name, agreement in groups.agreement.items()},
        "units": dict(validation.units),
        "reliability": None if groups.reliability is None else groups.reliability.record(),
        "mean_absolute_effect": groups.true.abs().mean().item(),
        "effects": {"true": groups.true.tolist(), **{n: p.tolist() for n, p in groups.predicted.items()}},
        "retrainings": validation.retrainings,
        "retrainings_per_minute_and_process": validation.per_minute,
    }


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each estimator and figure the mean over seeds with its interval; where it is unknown in a seed, over fewer."""

    def over(name: str, figure: str) -> dict[str, Any] | None:
        known = [seed["estimators"][name][figure] for seed in seeds]
        known = [value for value in known if value is not None]
        return over_seeds(known) if known else None

    return {name: {figure: over(name, figure) for figure in FIGURES} for name in seeds[0]["estimators"]}


def _write(
    plan: Plan,
    settings: Settings,
    chains: Mapping[str, Any],
    training: Mapping[str, Any],
    validation: Mapping[str, list[dict[str, Any]]],
    seconds: float,
) -> None:
    recipe = plan.recipe
    write_result(
        plan.name,
        settings,
        {
            "protocol": {
                "architecture": asdict(recipe.architecture),
                "training": {
                    what: asdict(getattr(recipe, what)) for what in ("pretraining", "middle", "finetuning", "adapting")
                },
                "first_stage_by_trainer": recipe.trainer,
                "groups": plan.groups,
                "share": plan.share,
                "steps": dict(plan.again),
                "rate": plan.rate,
                "batch": _batch(plan),
                "start": "warm, with Adam's saved state",
                "orders": plan.orders,
                "curvature_examples": plan.curvature_examples,
                "stages": [PRETRAIN, FINETUNE],
            },
            "training": training,
            "retraining": {
                name: {"each_seed": seeds, "summary": summary(seeds)} for name, seeds in validation.items() if seeds
            },
            "chains": chains,
            "seconds_of_the_last_call": seconds,
        },
    )
