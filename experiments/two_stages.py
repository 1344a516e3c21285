"""Both stages of an experiment with `ConvNet`s: trained now, or found on disk from an earlier call."""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.checkpoints import Record, digest, trained
from experiments.networks import ConvNet
from experiments.tasks import Task
from experiments.training import Training, gradient_norm, loss_and_accuracy
from stagetrace.progress import Progress


def untrained(seed: int, task: Task, *classes: int) -> list[ConvNet]:
    """Networks for the task's images, one for each count of classes; the seed draws their weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = [ConvNet(task.train.pixels.shape[1:], count) for count in classes]
    return [network.to(task.train.pixels.device) for network in made]


def pretrained(folder: Path, model: ConvNet, task: Task, plan: Training, progress: Progress) -> Record:
    """Train all of `model` on the task, or find it in `folder`."""
    given = {"stage": "pretrain", "training": asdict(plan), "classes": task.classes, "data": digest(task.train)}
    return trained(folder, "pretrain", model, given, lambda: _run(model, None, task, plan, "pretrain", progress))


def finetuned(
    folder: Path,
    stage: str,
    model: ConvNet,
    base: ConvNet,
    task: Task,
    plan: Training,
    progress: Progress,
    *,
    frozen: bool,
) -> Record:
    """Train `model` on the task from the embedding of `base`, or find it in `folder`.

    frozen: keep the embedding and train the head only; else train all of it.
    """
    model.embedding.load_state_dict(base.embedding.state_dict())
    given = {
        "stage": stage,
        "training": asdict(plan),
        "classes": task.classes,
        "data": digest(task.train),
        "frozen": frozen,
        "base": digest_of(base),
    }
    kept = model.embedding if frozen else None
    return trained(folder, stage, model, given, lambda: _run(model, kept, task, plan, stage, progress))


def counts(**tasks: Task) -> dict[str, Any]:
    """Classes and numbers of examples, by stage."""
    return {
        name: {"classes": task.classes, "train": len(task.train), "test": len(task.test)}
        for name, task in tasks.items()
    }


def digest_of(model: nn.Module) -> str:
    """SHA-256 of the weights."""
    sha = hashlib.sha256()
    for weight in model.state_dict().values():
        sha.update(weight.detach().cpu().numpy().tobytes())
    return sha.hexdigest()


def _run(model: ConvNet, kept: nn.Module | None, task: Task, plan: Training, stage: str, progress: Progress) -> Record:
    """Train the model, or its head alone on what a kept embedding makes of the images (computed once)."""
    part = model if kept is None else model.head
    with torch.no_grad():
        inputs, test = (
            images.pixels if kept is None else torch.cat([kept(few) for few in images.pixels.split(1024)])
            for images in (task.train, task.test)
        )
    started = time.perf_counter()
    with progress.task(f"training stage '{stage}'", plan.epochs, "epochs") as advance:
        plan.run(part, inputs, task.train.labels, lambda epoch: advance(1))
    seconds = time.perf_counter() - started
    return {
        "plan": asdict(plan),
        "parameters": sum(p.numel() for p in part.parameters()),
        "train": loss_and_accuracy(part, inputs, task.train.labels),
        "test": loss_and_accuracy(part, test, task.test.labels),
        "gradient_norm": gradient_norm(part, inputs, task.train.labels, plan.weight_decay),
        "seconds": seconds,
    }
