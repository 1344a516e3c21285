"""`bert` and `gpt`: chains of small transformers, traced to texts and compared with retraining.

Over one pretrained language model, then the sentiment of tweets: all parameters trained further (`updated`), LoRA on
the kept model (`lora`), and language modelling on the tweets in between (`three`). Groups of a tenth of the first
stage's texts, drawn before anything is scored, are left out of further training: Adam with its saved state, a constant
small rate, several orders of the batches, each beside its control. `gpt` is trained by `transformers.Trainer` first,
and is traced, not compared.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import final

from experiments.estimators import (
    EXACT,
    GAUSS_NEWTON,
    IDENTITY,
    OF_STEPS,
    OURS,
    SavedInfluence,
    alpha_of_steps,
    alpha_override,
    controls,
    on_rows,
)
from experiments.protocol import Experiment, Prepared, Run, Variant
from experiments.records import Record, of_validation, summary
from experiments.settings import Settings
from experiments.training import Training
from experiments.transformer_chains.models import Architecture, embedding
from experiments.transformer_chains.stages import (
    FINETUNE,
    LORA,
    PRETRAIN,
    THREE,
    UPDATED,
    Recipe,
    folder_of,
    prepare,
)
from experiments.transformer_chains.traces import DEFAULT, POSITIVE, kept_as, settings_by_name, traced
from stagetrace import Chain, Identity
from stagetrace.validation import Adam, Estimator, ExactSteps, GroupRemovals, Influence, SingleStage, Steps, Validation


@final
@dataclass(frozen=True)
class Plan:
    """One experiment of this kind.

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
    curvature_examples: int = 128


BERT = Plan(
    name="bert",
    recipe=Recipe(
        architecture=Architecture("bert"),
        pretraining=Training(epochs=8, rate=2e-3, batch=32, weight_decay=1e-4),
        middle=Training(epochs=3, rate=1e-3, batch=32, weight_decay=1e-4),
        finetuning=Training(epochs=4, rate=2e-3, batch=32, weight_decay=1e-4),
        adapting=Training(epochs=12, rate=5e-3, batch=32, weight_decay=1e-4),
    ),
    chains=(UPDATED, LORA, THREE),
    validated=(LORA, UPDATED),
    again={PRETRAIN: 40, FINETUNE: 30},
)
_CAUSAL = replace(BERT.recipe, architecture=Architecture("gpt"), trainer=True, three_lora=False)
GPT = replace(BERT, name="gpt", recipe=_CAUSAL, validated=(), seeds=1, curvature_examples=64)


def experiment(plan: Plan) -> Experiment[dict[str, Prepared]]:
    """The plan as a row of the table of experiments; the first seed trains and traces chains that others leave out."""

    def chains(settings: Settings) -> tuple[str, ...]:
        return plan.chains if settings.out == settings.root else plan.validated

    return Experiment(
        plan.name,
        plan.seeds,
        prepare=lambda settings, progress: prepare(plan.recipe, settings, chains(settings), progress),
        training=lambda prepared: next(iter(prepared.values())).facts,
        trace=lambda prepared, settings, progress: {
            name: traced(name, prepared[name], settings, plan.curvature_examples, progress) for name in plan.chains
        },
        variants=lambda prepared, settings: _variants(plan, prepared, settings),
        fields=lambda run: _fields(plan, run),
    )


def _variants(plan: Plan, prepared: Mapping[str, Prepared], settings: Settings) -> Iterator[Variant]:
    """Groups left out of the first stage of each chain that is validated."""
    for name in plan.validated:
        chain, fit = prepared[name].chain, fits(plan, name, prepared[name])
        yield Variant(
            where=(name,),
            chain=chain,
            query=prepared[name].query,
            fit=fit,
            choices=[GroupRemovals(plan.share, plan.groups, seed=settings.seed)],
            estimators=[
                *estimators(plan, chain, settings.seed, settings.out / "run" / name),
                ExactSteps(fit, range(plan.orders), EXACT),
            ],
            runs=range(plan.orders),
            processes=1,
            out=settings.root / "retrained" / f"{name}-seed-{settings.seed}",
            record=_of_groups,
        )


def fits(plan: Plan, name: str, prepared: Prepared) -> dict[str, Steps]:
    """How each stage of a chain is trained on."""
    states, batch = prepared.states, plan.recipe.pretraining.batch
    return {
        stage: Steps(Adam(plan.rate, state=states[folder_of(name, stage)]), plan.again[stage], batch)
        for stage in prepared.chain.names
    }


def estimators(plan: Plan, chain: Chain, seed: int, folder: Path) -> list[Estimator]:
    """The Hessian with a damping from its spectrum, a positive curvature, the controls; traces kept in `folder`."""
    choices, last = settings_by_name(chain, plan.curvature_examples, seed), chain.stages[-1]
    default, positive = choices[DEFAULT], choices[POSITIVE]
    of_steps = list[Estimator]()
    if last.link is not None and "alpha" in last.link.settings:
        inner = SavedInfluence(folder / "alpha-of-steps", *positive, GAUSS_NEWTON)
        of_steps.append(alpha_override(alpha_of_steps(plan.rate, plan.again[last.name]), inner, OF_STEPS))
    gradients, similarity, words, chance = controls(embedding, seed, text="text")
    return [
        SavedInfluence(folder / kept_as(DEFAULT), *default, OURS),
        SavedInfluence(folder / kept_as(POSITIVE), *positive, GAUSS_NEWTON),
        *of_steps,
        Influence(Identity(), name=IDENTITY),
        SingleStage(*positive),
        *(gradients, similarity, on_rows(words), chance),
    ]


def _of_groups(validation: Validation) -> Record:
    """One seed's numbers; effects: negative = leaving the group out helps; unit: query loss."""
    found, (measured,) = of_validation(validation), validation.measured
    (groups,) = found.pop("choices").values()
    effects = {"true": measured.true, **measured.predicted}
    return {
        "groups": len(measured.removals),
        "examples_in_a_group": len(measured.removals[0]),
        **groups,
        "units": dict(validation.units),
        "effects": {name: values.tolist() for name, values in effects.items()},
        **found,
    }


def _fields(plan: Plan, run: Run) -> Record:
    recipe = plan.recipe
    return {
        "protocol": {
            "architecture": asdict(recipe.architecture),
            "training": {w: asdict(getattr(recipe, w)) for w in ("pretraining", "middle", "finetuning", "adapting")},
            "first_stage_by_trainer": recipe.trainer,
            "groups": plan.groups,
            "share": plan.share,
            "steps": dict(plan.again),
            "rate": plan.rate,
            "batch": recipe.pretraining.batch,
            "start": "warm, with Adam's saved state",
            "orders": plan.orders,
            "curvature_examples": plan.curvature_examples,
            "stages": [PRETRAIN, FINETUNE],
        },
        "training": {str(seed): facts for seed, facts in run.training.items()},
        "retraining": {
            name: {"each_seed": each, "summary": summary(each)["estimators"]} for (name,), each in run.found.items()
        },
        "chains": run.traced,
        "seconds_of_the_last_call": run.seconds,
    }


EXPERIMENTS = {plan.name: experiment(plan) for plan in (BERT, GPT)}
