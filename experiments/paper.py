"""The paper's protocol: take one example out, go on training both stages from where they were, and look at the loss.

Chen et al. (2020), section 4.1 and appendix B. What the paper leaves open is chosen here: Adam goes on with the state
that it ended with (without it the first steps are as large as the rate, whatever the gradient) at a constant small
rate; every run is paired with a control that sees the same batches; several orders of the batches are averaged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from experiments import records
from experiments.checkpoints import Checkpoints
from experiments.estimators import (
    DEFAULT,
    EXACT,
    GAUSS_NEWTON,
    IDENTITY,
    OF_STEPS,
    alpha_of_steps,
    alpha_override,
    controls,
    shifted,
)
from experiments.image_stages import STAGES, counts, finetuned, image_chain, pretrained, untrained
from experiments.protocol import Experiment, Prepared, Run, Variant
from experiments.records import Record
from experiments.score_plots import extremes
from experiments.settings import Settings
from experiments.tasks import Task, tasks_of
from experiments.training import Training
from stagetrace import Frozen, GaussNewton, Hessian, Identity, Lanczos, Proximal, Query, trace
from stagetrace.curvature import Auto
from stagetrace.progress import Progress
from stagetrace.stages.links import Link
from stagetrace.validation import (
    Adam,
    Estimator,
    ExactSteps,
    Influence,
    RandomRemovals,
    SingleStage,
    Steps,
    TopRemovals,
)

HESSIAN_EXAMPLES = 1000
"""Of the pretraining Hessian, as in the paper."""
SHOWN = 20
OURS, PAPERS = "multi-stage, Hessian", "multi-stage, the paper's damping"


@final
@dataclass(frozen=True)
class Plan:
    """One experiment of this protocol.

    again: steps of each stage when it is trained again. rate: Adam's, then. orders: batch orders that are averaged.
    damping: the paper's, of H^2. reference: the paper's correlation, and where it is from.
    headline: the estimator whose figures stand first and are drawn; it was chosen on another seed (100).
    compared: the names of the estimators to compare; all if empty.
    query_examples: how many test images the query is the mean over, drawn by the seed; None takes all.
    """

    name: str
    dataset: str
    first_classes: tuple[int, ...]
    link: Link
    pretraining: Training
    finetuning: Training
    again: Mapping[str, int]
    damping: Mapping[str, float]
    reference: str
    headline: str = GAUSS_NEWTON
    compared: tuple[str, ...] = ()
    rate: float = 1e-4
    orders: int = 3
    count: int = 50
    seeds: int = 3
    together: int = 25
    finetune_examples: int = 5000
    query_examples: int | None = None
    query_batch: int = 2000

    @property
    def frozen(self) -> bool:
        return self.link.keeps_shared

    def examples(self) -> dict[str, int | None]:
        """Of each curvature: the paper's number; all in fine-tuning where it trains a head only."""
        return {"pretrain": HESSIAN_EXAMPLES, "finetune": None if self.frozen else HESSIAN_EXAMPLES}

    def curvatures(self, kind: Any, seed: int) -> dict[str, Any]:
        return {stage: kind(examples=count, seed=seed) for stage, count in self.examples().items()}

    def solvers(self) -> dict[str, Lanczos]:
        """The paper's systems, solved to the default residual."""
        return {stage: Lanczos(damping=self.damping[stage], max_steps=2000) for stage in STAGES}


MNIST_FROZEN = Plan(
    name="mnist-frozen",
    dataset="mnist",
    first_classes=(0, 1, 2, 3),
    link=Frozen("embedding"),
    pretraining=Training(epochs=15, weight_decay=1e-3),
    finetuning=Training(epochs=60, weight_decay=1e-3),
    again={"pretrain": 100, "finetune": 100},
    damping={"pretrain": 1e-2, "finetune": 1e-8},
    orders=2,
    together=9,
    reference='r about 0.6 ("0.6 is reasonable to show a strong correlation", section 4.1), one run, n not given',
)
"""Figure 2b: pretraining on the digits 0-3, a new head on 5,000 of the digits 4-9, the embedding kept. Rates, epochs
and weight decay are not known from the paper and are ours."""
CIFAR_FROZEN = replace(
    MNIST_FROZEN,
    name="cifar-frozen",
    dataset="cifar10",
    first_classes=(2, 6),
    pretraining=Training(epochs=30, batch=128, weight_decay=1e-3),
    finetuning=Training(epochs=30, batch=128, weight_decay=1e-3),
    again={"pretrain": 300, "finetune": 150},
    damping={"pretrain": 1e-8, "finetune": 1e-6},
    together=25,
    query_examples=2000,
    query_batch=1000,
)
"""Figure 2a: pretraining on birds and frogs, a new head for the other classes, the embedding kept. When trained again
the paper takes 6,000 and 3,000 steps; here it is a twentieth of both, and the query is the mean over 2,000 of the 8,000
test images, so that hundreds of examples, two batch orders and three seeds fit into an hour of two cores."""
CIFAR_UPDATED = replace(
    CIFAR_FROZEN,
    name="cifar-updated",
    link=Proximal("embedding", alpha=0.01),
    again={"pretrain": 300, "finetune": 50},
    headline=EXACT,
    compared=(
        EXACT,
        OURS,
        DEFAULT,
        GAUSS_NEWTON,
        OF_STEPS,
        IDENTITY,
        "single-stage influence",
        "gradient dot product",
        "random",
    ),
    reference="r = 0.40 (section 4.1), one run, n not given",
)
"""Figure 2c: as `cifar-frozen`, but fine-tuning trains the embedding further (the paper's alpha is 0.01). So few steps
move it little: beside the paper's alpha stands the one that 50 steps amount to, `alpha_of_steps`."""
IDENTITY_ABLATION = replace(
    MNIST_FROZEN,
    name="identity-ablation",
    headline=IDENTITY,
    compared=(OURS, DEFAULT, PAPERS, IDENTITY),
    reference="r = 0.17 (section 4.1), one run, n not given",
)
"""Figure 3: `mnist-frozen` with the identity in place of every inverse Hessian; the coupling between the stages stays
exact. The truth is that of `mnist-frozen`: a copy of its folder as `--out` saves training the examples again."""


def experiment(plan: Plan) -> Experiment[Prepared]:
    """The plan as a row of the table of experiments."""
    return Experiment(
        plan.name,
        plan.seeds,
        prepare=lambda settings, progress: prepare(plan, settings, progress),
        training=lambda prepared: prepared.facts,
        trace=lambda prepared, settings, progress: _traced(plan, prepared, settings, progress),
        variants=lambda prepared, settings: [variant(plan, prepared, settings, estimators(plan, settings.seed))],
        fields=lambda run: _fields(plan, run),
        headline=plan.headline,
    )


def prepare(plan: Plan, settings: Settings, progress: Progress) -> Prepared:
    """Both stages, trained now or by an earlier call with the same settings."""
    tasks = first, second = tasks_of(settings, plan.dataset, plan.first_classes, plan.finetune_examples)
    store, plans = (
        Checkpoints(settings.out / "checkpoints"),
        [p.seeded(settings.seed) for p in (plan.pretraining, plan.finetuning)],
    )
    base, model = untrained(settings.seed, first, len(first.classes), len(second.classes))
    facts = {"pretrain": pretrained(store, base, first, plans[0], progress)}
    facts["finetune"] = finetuned(store, "finetune", model, base, second, plans[1], progress, frozen=plan.frozen)
    store.keep_rows({"pretrain": first.train.rows, "finetune": second.train.rows})
    chain = image_chain((base, model), tasks, plan.link, *(each.weight_decay for each in plans))
    query = Query(second.test.drawn(plan.query_examples, settings.seed).dataset, batch_size=plan.query_batch)
    return Prepared(chain, query, facts, {stage: store.adam(stage) for stage in STAGES}, tasks)


def variant(plan: Plan, prepared: Prepared, settings: Settings, compared: list[Estimator]) -> Variant:
    """The examples with the largest scores and as many random ones, each left out of further training."""
    again = fits(plan, prepared)
    exact = [ExactSteps(again, range(plan.orders), EXACT)] if EXACT in plan.compared else []
    return Variant(
        where=(),
        chain=prepared.chain,
        query=prepared.query,
        fit=again,
        choices=[TopRemovals(plan.count), RandomRemovals(plan.count, seed=settings.seed)],
        estimators=[*exact, *compared],
        runs=range(plan.orders),
        together=plan.together,
        out=settings.root / "retrained" / f"seed-{settings.seed}",
    )


def fits(plan: Plan, prepared: Prepared) -> dict[str, Steps]:
    """How each stage is trained on."""
    batches = {"pretrain": plan.pretraining.batch, "finetune": plan.finetuning.batch}
    return {s: Steps(Adam(plan.rate, state=prepared.states[s]), plan.again[s], batches[s]) for s in STAGES}


def estimators(plan: Plan, seed: int) -> list[Estimator]:
    """The Hessian with a damping from its spectrum, the library's default, other choices, and the controls.

    The first decides which scores are the largest: it was the default when these experiments were first run. Where the
    derivative through the steps is compared, that comes first.
    """
    hessian, auto = plan.curvatures(Hessian, seed), Lanczos(max_steps=2000)
    positive = Influence(plan.curvatures(GaussNewton, seed), shifted(0.1, max_steps=2000), name=GAUSS_NEWTON)
    alpha = alpha_of_steps(plan.rate, plan.again["finetune"])
    every: list[Estimator] = [
        Influence(hessian, auto, name=OURS),
        Influence(plan.curvatures(Auto, seed), auto, name=DEFAULT),
        Influence(hessian, plan.solvers(), name=PAPERS),
        positive,
        *([] if plan.frozen else [alpha_override(alpha, positive, OF_STEPS)]),
        Influence(Identity(), name=IDENTITY),
        SingleStage(GaussNewton(examples=HESSIAN_EXAMPLES, seed=seed), Lanczos(damping=1e-2, max_steps=2000)),
        *controls("embedding", seed),
    ]
    return [each for each in every if not plan.compared or each.name in plan.compared]


def _traced(plan: Plan, prepared: Prepared, settings: Settings, progress: Progress) -> Record:
    """The whole scoring job with the paper's dampings: every example of both stages, kept in OUT/run."""
    curvature, solver = plan.curvatures(Hessian, settings.seed), plan.solvers()
    options: Any = {"curvature": curvature, "solver": solver, "out": settings.out / "run", "progress": progress}
    result = trace(prepared.chain, prepared.query, **options)
    first, second = prepared.data
    classes = ", ".join(map(str, second.classes))
    query = f"the mean loss over {len(prepared.query.data):,} test examples of the classes {classes}"
    extremes(settings.out / "scores.png", result["pretrain"], first.train, first.classes, query)
    tracing: Any = result.statistics["seconds"]
    model = prepared.chain["pretrain"].stage.model
    forward = records.forward_seconds(model, first.train.pixels)
    return {
        "counts": counts(pretrain=first, finetune=second),
        "training": prepared.facts,
        "alpha": prepared.chain["finetune"].link_settings.get("alpha"),
        **records.of_trace(result, curvature, solver),
        "scores": {
            stage: {**records.of_scores(result[stage], SHOWN), "mean_by_class": _by_class(result[stage].values, task)}
            for stage, task in zip(STAGES, prepared.data, strict=True)
        },
        "seconds": {
            "training": {stage: facts["seconds"] for stage, facts in prepared.facts.items()},
            "tracing": tracing,
            "forward_pass_over_pretraining_examples": forward,
            "tracing_in_forward_passes": {what: spent / forward for what, spent in tracing.items() if what != "in all"},
        },
    }


def _by_class(values: torch.Tensor, task: Task) -> dict[str, float]:
    labels = task.train.labels.cpu()
    return {str(label): values[labels == number].mean().item() for number, label in enumerate(task.classes)}


def _fields(plan: Plan, run: Run) -> Record:
    seeds = [
        {
            "training": run.training[each["seed"]],
            **each,
            "choices": dict(zip(("largest", "random"), each["choices"].values(), strict=True)),
        }
        for each in run.found[()]
    ]
    largest, random = (records.summary([seed["choices"][choice] for seed in seeds]) for choice in ("largest", "random"))
    headline = largest["estimators"][plan.headline]
    return {
        "estimator": plan.headline,
        **{figure: headline[figure]["mean"] for figure in ("pearson_r", "spearman_r", "slope")},
        "n": largest["n"],
        "interval": [headline["pearson_r"]["low"], headline["pearson_r"]["high"]],
        "noise_floor": largest["noise_floor"]["mean"],
        "paper": plan.reference,
        "protocol": {
            "query_examples": plan.query_examples or "all",
            "steps": dict(plan.again),
            "batch": {"pretrain": plan.pretraining.batch, "finetune": plan.finetuning.batch},
            "rate": plan.rate,
            "start": "warm, with Adam's saved state",
            "orders": plan.orders,
            "seeds": len(seeds),
        },
        "retraining": {"largest": largest, "random": random, "each_seed": seeds},
        **run.traced,
        "seconds": {**run.traced["seconds"], "in all": run.seconds},
    }


EXPERIMENTS = {plan.name: experiment(plan) for plan in (MNIST_FROZEN, CIFAR_FROZEN, CIFAR_UPDATED, IDENTITY_ABLATION)}
