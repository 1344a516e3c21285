"""The paper's protocol: take one example out, go on training both stages from where they were, and look at the loss.

Chen et al. (2020), section 4.1 and appendix B: Adam, the same batch size as in training, so many steps a stage. What
the paper leaves open is chosen here: Adam goes on with the state that it ended with (without it the first steps are as
large as the rate, whatever the gradient) at a constant small rate; every run is paired with a control that sees the
same batches; and several orders of the batches are averaged, since the truth of one order is partly noise:
`reliability` says how much of it is not. Three seeds, each with its own initial weights, batches and draws.

OUT/checkpoints, OUT/run, OUT/scores.png   first seed: stages, trace with the paper's dampings, most harmful and helpful
OUT/seed-N/checkpoints                      the stages of the other seeds
OUT/retrained/seed-N                        every retraining, kept as it ends
OUT/agreement.png, OUT/result.json
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from experiments.agreement_figures import panels
from experiments.checkpoints import Record, digest, keep_rows, keep_state, saved_state, trained
from experiments.figures import extremes
from experiments.images import Images
from experiments.intervals import over_seeds
from experiments.networks import ConvNet
from experiments.other_alpha import WithAlpha, alpha_of_steps
from experiments.result import write_result
from experiments.settings import Settings
from experiments.tasks import Task, tasks_of
from experiments.tracing import forward_seconds, scoring, solving, warnings_of
from experiments.training import Training, gradient_norm, loss_and_accuracy
from stagetrace import Chain, GaussNewton, Hessian, Identity, Lanczos, Link, Query, Stage, Trace, trace
from stagetrace.curvature import Auto
from stagetrace.curvature.choices import Curvature
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.solvers import Shift
from stagetrace.solvers.base import Solver
from stagetrace.validation import (
    Adam,
    Drawn,
    EmbeddingSimilarity,
    Estimator,
    GradientDot,
    Influence,
    Largest,
    Random,
    SingleStage,
    Steps,
    Validation,
    validate,
)

HESSIAN_EXAMPLES = 1000
"""Of the pretraining Hessian, as in the paper."""
SHOWN = 20
STAGES = ("pretrain", "finetune")
OURS, DEFAULT = "multi-stage, Hessian", "multi-stage, the default"
PAPERS, IDENTITY = "multi-stage, the paper's damping", "identity curvature"
GAUSS_NEWTON = "multi-stage, Gauss-Newton + 0.1"
OF_STEPS = "multi-stage, Gauss-Newton + 0.1, alpha of the steps"
"""What `docs/how-to-choose.md` takes for stages that are not at a minimum, as these; chosen on another seed (100). The
default is beside it."""


@final
@dataclass(frozen=True)
class Plan:
    """One experiment of this protocol.

    again: steps of each stage when it is trained again. rate: Adam's, then. orders: batch orders that are averaged.
    damping: the paper's, of H^2. reference: the paper's correlation, and where it is from.
    headline: the estimator whose figures stand first and are drawn. compared: the names to compare; all if empty.
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

    def hessian_examples(self, stage: str) -> int | None:
        """As in the paper for pretraining; for fine-tuning as many where it trains the whole network, else all."""
        return HESSIAN_EXAMPLES if stage == "pretrain" or not self.frozen else None

    def solvers(self) -> dict[str, Solver]:
        """The paper's systems, solved to the default residual."""
        return {stage: Lanczos(damping=self.damping[stage], max_steps=2000) for stage in STAGES}


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """Both stages of one seed, the query, and how their training went."""

    first: Task
    second: Task
    chain: Chain
    query: Query
    states: Mapping[str, Any]
    said: Record


def run(plan: Plan, settings: Settings, progress: Progress) -> None:
    """Train, trace, train again without examples, compare; a killed run goes on where it was."""
    started = time.perf_counter()
    first_scores: dict[str, Any] = {}
    seeds: list[dict[str, Any]] = []
    validations: list[Validation] = []
    for seed in range(settings.seed, settings.seed + plan.seeds):
        is_first = seed == settings.seed
        here = replace(settings, seed=seed, out=settings.out if is_first else settings.out / f"seed-{seed}")
        both = train_both(plan, here, progress)
        if is_first:
            first_scores = _scored(plan, here, both, progress)
        validation = validate(
            both.chain,
            both.query,
            fit=fits(plan, both),
            choices=[Largest(plan.count), Drawn(plan.count, seed=seed)],
            estimators=estimators(plan, seed),
            seeds=range(plan.orders),
            together=plan.together,
            out=settings.out / "retrained" / f"seed-{seed}",
            progress=progress,
        )
        validations.append(validation)
        seeds.append({"seed": seed, "training": both.said, **_measured(validation)})
        panels(settings.out / "agreement.png", {plan.name: [found.measured for found in validations]}, plan.headline)
        _write(plan, settings, first_scores, seeds, time.perf_counter() - started)


def fits(plan: Plan, both: Trained) -> dict[str, Steps]:
    """How each stage is trained on."""
    return {
        stage: Steps(Adam(plan.rate, state=both.states[stage]), plan.again[stage], training.batch)
        for stage, training in zip(STAGES, (plan.pretraining, plan.finetuning), strict=True)
    }


def estimators(plan: Plan, seed: int) -> list[Estimator]:
    """The Hessian with a damping from its spectrum, the library's default, other choices, and the controls.

    The first decides which scores are the largest: it was the default when these experiments were first run.
    """
    automatic: dict[str, Curvature] = {
        stage: Auto(examples=plan.hessian_examples(stage), seed=seed) for stage in STAGES
    }
    hessian: dict[str, Curvature] = _curvatures(plan, seed)
    gauss_newton: dict[str, Curvature] = {
        stage: GaussNewton(examples=plan.hessian_examples(stage), seed=seed) for stage in STAGES
    }
    every: list[Estimator] = [
        Influence(hessian, Lanczos(max_steps=2000), name=OURS),
        Influence(automatic, Lanczos(max_steps=2000), name=DEFAULT),
        Influence(hessian, plan.solvers(), name=PAPERS),
        Influence(gauss_newton, Lanczos(damping=0.1, filter=Shift, max_steps=2000), name=GAUSS_NEWTON),
        Influence(Identity(), name=IDENTITY),
        SingleStage(GaussNewton(examples=HESSIAN_EXAMPLES, seed=seed), Lanczos(damping=1e-2, max_steps=2000)),
        GradientDot(),
        EmbeddingSimilarity("embedding"),
        Random(seed),
    ]
    if not plan.frozen:
        alpha = alpha_of_steps(plan.rate, plan.again["finetune"])
        every.insert(4, WithAlpha(alpha, every[3], OF_STEPS))
    return [each for each in every if not plan.compared or each.name in plan.compared]


def train_both(plan: Plan, settings: Settings, progress: Progress) -> Trained:
    """Both stages as trained (now, or by an earlier call with the same settings), and how their training went."""
    first, second = tasks_of(settings, plan.dataset, plan.first_classes, plan.finetune_examples)
    folder = settings.out / "checkpoints"
    shape = first.train.pixels.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        models = {
            stage: ConvNet(shape, len(task.classes)).to(settings.device)
            for stage, task in zip(STAGES, (first, second), strict=True)
        }
    before, after = models["pretrain"], models["finetune"]
    given: Record = {
        "model": "ConvNet",
        "training": asdict(plan.pretraining.seeded(settings.seed)),
        "classes": first.classes,
        "data": digest(first.train),
    }

    def train(stage: str, task: Task, training: Training, kept: nn.Module | None, given: Record) -> Record:
        model = models[stage] if kept is None else models[stage].head
        work = lambda: _train(model, kept, training.seeded(settings.seed), task, stage, folder, progress)  # noqa: E731
        return trained(folder, stage, models[stage], given, work)

    said = {"pretrain": train("pretrain", first, plan.pretraining, None, given)}
    after.embedding.load_state_dict(before.embedding.state_dict())
    given = {
        "training": asdict(plan.finetuning.seeded(settings.seed)),
        "classes": second.classes,
        "data": digest(second.train),
        "frozen": plan.frozen,
        "pretrain": given,
    }
    kept = after.embedding if plan.frozen else None
    said["finetune"] = train("finetune", second, plan.finetuning, kept, given)
    keep_rows(folder, {"pretrain": first.train.rows, "finetune": second.train.rows})
    stages = [
        Stage(
            stage,
            model=models[stage],
            objective=Classification(),
            data=task.train.dataset,
            weight_decay=training.weight_decay,
            link=link,
        )
        for stage, task, training, link in (
            ("pretrain", first, plan.pretraining, None),
            ("finetune", second, plan.finetuning, plan.link),
        )
    ]
    states = {stage: saved_state(folder, stage) for stage in STAGES}
    query = Query(_drawn(second.test, plan.query_examples, settings.seed).dataset, batch_size=plan.query_batch)
    return Trained(first, second, Chain(*stages), query, states, said)


def _drawn(images: Images, count: int | None, seed: int) -> Images:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images if count is None else images[order[:count].sort().values]


def _train(
    model: nn.Module,
    embedding: nn.Module | None,
    training: Training,
    task: Task,
    stage: str,
    folder: Path,
    progress: Progress,
) -> Record:
    """Train `model` on the task, on top of what a kept embedding makes of it (computed once, as it does not move)."""
    with torch.no_grad():
        inputs, test = (
            images.pixels if embedding is None else torch.cat([embedding(few) for few in images.pixels.split(1024)])
            for images in (task.train, task.test)
        )
    started = time.perf_counter()
    with progress.task(f"training stage '{stage}'", training.epochs, "epochs") as advance:
        state = training.run(model, inputs, task.train.labels, lambda epoch: advance(1))
    seconds = time.perf_counter() - started
    keep_state(folder, stage, state)
    return {
        "plan": asdict(training),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train": loss_and_accuracy(model, inputs, task.train.labels),
        "test": loss_and_accuracy(model, test, task.test.labels),
        "gradient_norm": gradient_norm(model, inputs, task.train.labels, training.weight_decay),
        "seconds": seconds,
    }


def _scored(plan: Plan, settings: Settings, both: Trained, progress: Progress) -> dict[str, Any]:
    """The whole scoring job with the paper's dampings: every example of both stages, kept in OUT/run."""
    curvature, solver = _curvatures(plan, settings.seed), plan.solvers()
    result = trace(
        both.chain, both.query, curvature=curvature, solver=solver, out=settings.out / "run", progress=progress
    )
    tasks = {"pretrain": both.first, "finetune": both.second}
    query = f"the mean loss over {len(both.query.data):,} test examples of the classes {_listed(both.second.classes)}"
    extremes(settings.out / "scores.png", result["pretrain"], both.first.train, both.first.classes, query)
    return {
        "counts": {
            name: {"classes": task.classes, "train": len(task.train), "test": len(task.test)}
            for name, task in tasks.items()
        },
        "training": both.said,
        "alpha": both.chain["finetune"].link_settings.get("alpha"),
        "solving": solving(result, curvature, solver),
        "warnings": warnings_of(result),
        "scores": {name: scoring(result[name], task.train.labels, task.classes, SHOWN) for name, task in tasks.items()},
        "seconds": _seconds(both, result),
    }


def _curvatures(plan: Plan, seed: int) -> dict[str, Curvature]:
    return {stage: Hessian(examples=plan.hessian_examples(stage), seed=seed) for stage in STAGES}


def _measured(validation: Validation) -> dict[str, Any]:
    """One seed's numbers, by choice of examples."""
    choices: dict[str, Any] = {}
    for name, measured in zip(("largest", "random"), validation.measured, strict=True):
        choices[name] = {
            "estimators": {each: agreement.record() for each, agreement in measured.agreement.items()},
            "reliability": None if measured.reliability is None else measured.reliability.record(),
            "mean_absolute_effect": measured.true.abs().mean().item(),
        }
    return {
        "choices": choices,
        "retrainings": validation.retrainings,
        "retrainings_per_minute_and_process": validation.per_minute,
    }


def _write(plan: Plan, settings: Settings, scored: dict[str, Any], seeds: list[dict[str, Any]], seconds: float) -> None:
    fields = dict(scored)
    spent = fields.pop("seconds")
    largest, random = (summary(seeds, choice) for choice in ("largest", "random"))
    headline = largest["estimators"][plan.headline]
    write_result(
        plan.name,
        settings,
        {
            "estimator": plan.headline,
            "pearson_r": headline["pearson_r"]["mean"],
            "spearman_r": headline["spearman_r"]["mean"],
            "slope": headline["slope"]["mean"],
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
            **fields,
            "seconds": {**spent, "in all": seconds},
        },
    )


def summary(seeds: list[dict[str, Any]], choice: str) -> dict[str, Any]:
    """Mean over seeds and its 95 % t-interval, for each estimator and figure."""
    found = [seed["choices"][choice] for seed in seeds]
    names = found[0]["estimators"]
    reliable = [each["reliability"] for each in found if each["reliability"] is not None]

    def over(figure: str) -> dict[str, Any]:
        values = [each[figure] for each in reliable if each[figure] is not None]
        return over_seeds(values) if values else {"n": 0, "mean": None, "low": None, "high": None, "each": []}

    return {
        "n": found[0]["estimators"][OURS]["n"],
        "reliability": over("reliability"),
        "ceiling": over("ceiling"),
        "noise_floor": over("noise_floor"),
        "estimators": {
            name: {
                figure: _over_known([each["estimators"][name][figure] for each in found])
                for figure in ("pearson_r", "spearman_r", "slope", "without_largest")
            }
            for name in names
        },
    }


def _over_known(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return over_seeds(known) if known else {"n": 0, "mean": None, "low": None, "high": None, "each": []}


def _seconds(both: Trained, result: Trace) -> dict[str, Any]:
    """Wall seconds of each part; those of training and tracing are from the call that did the work."""
    model = both.chain["pretrain"].stage.model
    forward = forward_seconds(model, both.first.train, batch_size=256)
    tracing: Any = result.statistics["seconds"]
    spent = {what: seconds for what, seconds in tracing.items() if what != "in all"}
    return {
        "training": {stage: said["seconds"] for stage, said in both.said.items()},
        "tracing": tracing,
        "forward_pass_over_pretraining_examples": forward,
        "tracing_in_forward_passes": {what: seconds / forward for what, seconds in spent.items()},
    }


def _listed(classes: tuple[int, ...]) -> str:
    return ", ".join(map(str, classes))
