"""Both stages of an experiment with `ConvNet`s: trained now, or found on disk from an earlier call."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from experiments.checkpoints import Checkpoints, Record, digest
from experiments.networks import ConvNet
from experiments.tasks import Task
from experiments.training import Training, count_of, gradient_norm, logits_of, quality, train_classifier
from stagetrace import Chain, Stage
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.stages.links import Link

STAGES: tuple[str, str] = ("pretrain", "finetune")


def untrained(seed: int, task: Task, *classes: int) -> list[ConvNet]:
    """Networks for the task's images, one for each count of classes; the seed draws their weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = [ConvNet(task.train.pixels.shape[1:], count) for count in classes]
    return [network.to(task.train.pixels.device) for network in made]


def pretrained(store: Checkpoints, model: ConvNet, task: Task, plan: Training, progress: Progress) -> Record:
    """Train all of `model` on the task, or find it in the store."""
    own = {"model": "ConvNet", **given(task, plan)}
    return store.trained("pretrain", model, own, _training(model, None, task, plan, "stage 'pretrain'", progress))


def finetuned(
    store: Checkpoints,
    stage: str,
    model: ConvNet,
    base: ConvNet,
    task: Task,
    plan: Training,
    progress: Progress,
    *,
    frozen: bool,
) -> Record:
    """Train `model` on the task from the embedding of `base`, or find it in the store.

    frozen: keep the embedding and train the head only; else train all of it.
    """
    model.embedding.load_state_dict(base.embedding.state_dict())
    own = {**given(task, plan), "frozen": frozen, "base": digest(*base.state_dict().values())}
    kept = model.embedding if frozen else None
    return store.trained(stage, model, own, _training(model, kept, task, plan, f"stage '{stage}'", progress))


def image_chain(models: tuple[ConvNet, ConvNet], tasks: tuple[Task, Task], link: Link, *decays: float) -> Chain:
    """The chain of a pretrained and a fine-tuned network; decays: the weight decay of each stage, none if not given."""
    stages = [
        Stage(name, model=model, objective=Classification(), data=task.train.dataset, link=how, weight_decay=decay)
        for name, model, task, how, decay in zip(STAGES, models, tasks, (None, link), decays or (0.0, 0.0), strict=True)
    ]
    return Chain(*stages)


def counts(**tasks: Task) -> dict[str, Any]:
    """Classes and numbers of examples, by stage."""
    return {n: {"classes": t.classes, "train": len(t.train), "test": len(t.test)} for n, t in tasks.items()}


def given(task: Task, plan: Training) -> Record:
    """What a stage's weights depend on: its training and its data."""
    data = digest(task.train.pixels, task.train.labels, task.train.rows)
    return {"training": asdict(plan), "classes": task.classes, "data": data}


def _training(
    model: ConvNet, kept: nn.Module | None, task: Task, plan: Training, what: str, progress: Progress
) -> Callable[[], Record]:
    """Train the model, or its head alone on what a kept embedding makes of the images (computed once)."""

    def train() -> Record:
        part = model if kept is None else model.head
        inputs, test = (
            images.pixels if kept is None else logits_of(kept, images.pixels) for images in (task.train, task.test)
        )
        state = train_classifier(part, plan, inputs, task.train.labels, what, progress)
        return {
            "adam": state,
            "plan": asdict(plan),
            "parameters": count_of(part),
            "train": quality(logits_of(part, inputs), task.train.labels),
            "test": quality(logits_of(part, test), task.test.labels),
            "gradient_norm": gradient_norm(part, inputs, task.train.labels, plan.weight_decay),
        }

    return train
