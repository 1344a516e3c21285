"""`mnist-frozen`: pretraining on the digits 0-3, a new head on 5,000 of the digits 4-9, the embedding kept.

The setting of Chen et al. (2020), section 4.1, second data set: a convolutional network, tanh everywhere; Adam, batches
of 512; damping on H^2 of 1e-2 in pretraining and 1e-8 in fine-tuning; the pretraining Hessian from 1,000 sampled
examples; the query is the mean loss over the whole test set of the fine-tuning task. Rates and epochs are not known
from the paper and are ours.

Every pretraining example and every fine-tuning example is scored.
"""

import time
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from experiments.checkpoints import Record, digest, keep_rows, trained
from experiments.figures import extremes
from experiments.networks import ConvNet
from experiments.result import write_result
from experiments.settings import Settings
from experiments.tasks import Task, tasks_of
from experiments.tracing import forward_seconds, scoring, solving, warnings_of
from experiments.training import Training, gradient_norm, loss_and_accuracy
from stagetrace import Chain, Frozen, Hessian, Lanczos, Query, Stage, Trace, trace
from stagetrace.curvature.choices import Curvature
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.solvers.base import Solver

NAME = "mnist-frozen"
DATASET = "mnist"
PRETRAINED_CLASSES = (0, 1, 2, 3)
FINETUNE_EXAMPLES = 5000
PRETRAINING = Training(epochs=40)
FINETUNING = Training(epochs=200)
HESSIAN_EXAMPLES = 1000
SOLVERS: dict[str, Solver] = {
    "pretrain": Lanczos(damping=1e-2),
    "finetune": Lanczos(damping=1e-8, max_steps=2000),
}
SHOWN = 20


def run(settings: Settings, progress: Progress) -> None:
    """Train or reuse both stages and trace; writes `checkpoints/`, `run/`, `scores.png`, `result.json` into `out`."""
    started = time.perf_counter()
    first, second = tasks_of(settings, DATASET, PRETRAINED_CLASSES, FINETUNE_EXAMPLES)
    reading = time.perf_counter() - started

    pretrained, finetuned, training = train_both(settings, first, second, progress)
    chain = Chain(
        Stage("pretrain", model=pretrained, objective=Classification(), data=first.train.dataset),
        Stage(
            "finetune", model=finetuned, objective=Classification(), data=second.train.dataset, link=Frozen("embedding")
        ),
    )
    curvature: dict[str, Curvature] = {
        "pretrain": Hessian(examples=HESSIAN_EXAMPLES, seed=settings.seed),
        "finetune": Hessian(),
    }
    result = trace(
        chain,
        Query(second.test.dataset),
        curvature=curvature,
        solver=SOLVERS,
        out=settings.out / "run",
        progress=progress,
    )

    images = {"pretrain": first, "finetune": second}
    query = f"the mean loss over all {len(second.test):,} test examples of the classes {_listed(second.classes)}"
    extremes(settings.out / "scores.png", result["pretrain"], first.train, first.classes, query)
    write_result(
        NAME,
        settings,
        {
            "counts": _counts(first, second),
            "training": training,
            "alpha": None,
            "solving": solving(result, curvature, SOLVERS),
            "warnings": warnings_of(result),
            "scores": {
                name: scoring(result[name], task.train.labels, task.classes, SHOWN) for name, task in images.items()
            },
            # Predicted against measured removals belong here: pearson_r, spearman_r, slope, n, interval, noise floor.
            "retraining": None,
            "seconds": _seconds(reading, training, result, pretrained, first),
        },
    )


def train_both(settings: Settings, first: Task, second: Task, progress: Progress) -> tuple[ConvNet, ConvNet, Record]:
    """Both stages as trained (now, or by an earlier call with the same settings), and how their training went."""
    folder = settings.out / "checkpoints"
    shape = first.train.pixels.shape[1:]
    torch.manual_seed(settings.seed)
    pretrained = ConvNet(shape, len(first.classes)).to(settings.device)
    finetuned = ConvNet(shape, len(second.classes)).to(settings.device)

    plan = replace(PRETRAINING, seed=settings.seed)
    given: Record = {
        "model": "ConvNet",
        "training": asdict(plan),
        "classes": first.classes,
        "data": digest(first.train),
    }
    said = {
        "pretrain": trained(
            folder, "pretrain", pretrained, given, lambda: _train(pretrained, None, plan, first, "pretrain", progress)
        )
    }
    finetuned.embedding.load_state_dict(pretrained.embedding.state_dict())
    after = replace(FINETUNING, seed=settings.seed)
    given = {"training": asdict(after), "classes": second.classes, "data": digest(second.train), "pretrain": given}
    said["finetune"] = trained(
        folder,
        "finetune",
        finetuned,
        given,
        lambda: _train(finetuned.head, finetuned.embedding, after, second, "finetune", progress),
    )
    keep_rows(folder, {"pretrain": first.train.rows, "finetune": second.train.rows})
    return pretrained, finetuned, said


def _train(
    model: nn.Module, embedding: nn.Module | None, plan: Training, task: Task, stage: str, progress: Progress
) -> Record:
    """Train `model` on the task, on top of what a kept embedding makes of it (computed once, as it does not move)."""
    with torch.no_grad():
        inputs, test = (
            images.pixels if embedding is None else embedding(images.pixels) for images in (task.train, task.test)
        )
    started = time.perf_counter()
    with progress.task(f"training stage '{stage}'", plan.epochs, "epochs") as advance:
        plan.run(model, inputs, task.train.labels, lambda epoch: advance(1))
    seconds = time.perf_counter() - started
    return {
        "plan": asdict(plan),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train": loss_and_accuracy(model, inputs, task.train.labels),
        "test": loss_and_accuracy(model, test, task.test.labels),
        "gradient_norm": gradient_norm(model, inputs, task.train.labels, plan.weight_decay),
        "seconds": seconds,
    }


def _counts(first: Task, second: Task) -> dict[str, Any]:
    return {
        name: {"classes": task.classes, "train": len(task.train), "test": len(task.test)}
        for name, task in (("pretrain", first), ("finetune", second))
    }


def _seconds(reading: float, training: Record, result: Trace, model: nn.Module, first: Task) -> dict[str, Any]:
    """Wall seconds of each part; those of training and tracing are from the call that did the work."""
    forward = forward_seconds(model, first.train, batch_size=256)
    tracing: Any = result.statistics["seconds"]
    spent = {what: seconds for what, seconds in tracing.items() if what != "in all"}
    return {
        "reading": reading,
        "training": {stage: said["seconds"] for stage, said in training.items()},
        "tracing": tracing,
        "forward_pass_over_pretraining_examples": forward,
        "tracing_in_forward_passes": {what: seconds / forward for what, seconds in spent.items()},
    }


def _listed(classes: tuple[int, ...]) -> str:
    return ", ".join(map(str, classes))
