"""A chain small enough to be solved to a strict minimum in float64: pooled images, one tanh layer, a linear head.

Weight decay is chosen for each stage by the loss on held-out training examples, before anything is scored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.images import Images
from experiments.networks import Dense
from experiments.settings import Settings
from experiments.tasks import Task, two_tasks
from experiments.training import loss_and_accuracy
from stagetrace import Chain, Frozen, Link, Proximal, Query, Stage
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.validation import minimise
from stagetrace.validation.handing_on import with_values

INPUTS = 108
"""Pixels after pooling, at most, over all channels."""
HIDDEN = 16
EXAMPLES = 5000
HELD_OUT = 1000
DECAYS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
ALPHA = 0.01
"""The paper's."""
LINKS: dict[str, Link] = {"frozen": Frozen("embedding"), "updated": Proximal("embedding", alpha=ALPHA)}


@final
@dataclass(frozen=True, eq=False)
class Split:
    """One task's examples as features `[n, inputs]` and labels: trained on, held out for the choice, and tested on."""

    train: TensorDataset
    held_out: TensorDataset
    test: TensorDataset
    classes: int


@final
@dataclass(frozen=True, eq=False)
class Solved:
    """A chain at its strict minima; facts: what was chosen and reached, as plain values."""

    chain: Chain
    query: Query
    facts: dict[str, object]


def splits(settings: Settings, own: str, first_classes: tuple[int, ...], seed: int) -> tuple[Split, Split]:
    """Both tasks; pooled, and standardised by the pretraining images."""
    first, second = two_tasks(settings.folder(own), first_classes)
    count = min(settings.examples or EXAMPLES, EXAMPLES)
    drawn = [_drawn(task, count, seed) for task in (first, second)]
    pixels = _pooled(drawn[0][0])
    mean, scale = pixels.mean(dim=0), pixels.std()

    def features(images: Images) -> TensorDataset:
        return TensorDataset(((_pooled(images) - mean) / scale).to(settings.device), images.labels.to(settings.device))

    one, two = (
        Split(features(train), features(held_out), features(task.test), len(task.classes))
        for task, (train, held_out) in zip((first, second), drawn, strict=True)
    )
    return one, two


def solved(first: Split, second: Split, seed: int, folder: Path, progress: Progress) -> dict[str, Solved]:
    """The chain with the embedding kept and the one with it updated, over the same pretraining; kept in `folder`."""
    inputs = first.train.tensors[0].shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        device = first.train.tensors[0].device
        before, after = (Dense(inputs, HIDDEN, split.classes).double().to(device) for split in (first, second))
    pretrain, facts = _best("pretrain", before, first, None, None, folder, progress)
    found_embedding = {name: value for name, value in pretrain.model.state_dict().items() if "embedding" in name}
    after.load_state_dict(found_embedding, strict=False)
    query, found = Query(second.test, batch_size=len(second.test)), dict[str, Solved]()
    for name, link in LINKS.items():
        finetune, later = _best(f"finetune-{name}", after, second, link, pretrain, folder, progress)
        found[name] = Solved(Chain(pretrain, finetune), query, {"pretrain": facts, "finetune": later})
    return found


def _best(
    name: str, model: Dense, split: Split, link: Link | None, before: Stage | None, folder: Path, progress: Progress
) -> tuple[Stage, dict[str, object]]:
    """The stage solved at the weight decay with the least held-out loss, each tried from the one before."""
    kept = folder / f"{name}.pt"
    losses: dict[float, float] = {}
    stage = Stage(
        name.split("-")[0],
        model=model,
        objective=Classification(),
        data=split.train,
        link=link,
        weight_decay=DECAYS[0],
        batch_size=len(split.train),
    )
    if kept.exists():
        saved = torch.load(kept, weights_only=True)
        stage = _with(stage, saved["values"], saved["facts"]["weight_decay"])
        return stage, saved["facts"]
    start = dict(model.named_parameters())
    for decay in DECAYS:
        problem = _chain(before, _with(stage, start, decay))[stage.name]
        start = {**dict(start), **minimise(problem, tolerance=1e-3, strict=False, progress=progress).values}
        trial = _with(stage, start, decay).model
        losses[decay] = loss_and_accuracy(trial, *split.held_out.tensors)["loss"]
    decay = min(losses, key=lambda each: losses[each])
    problem = _chain(before, _with(stage, dict(model.named_parameters()), decay))[stage.name]
    minimum = minimise(problem, tolerance=1e-10, max_steps=500, progress=progress)
    done = _with(stage, {**dict(model.named_parameters()), **minimum.checked()}, decay)
    facts: dict[str, object] = {
        "weight_decay": decay,
        "held_out_loss": {f"{each:g}": loss for each, loss in losses.items()},
        "parameters": problem.own.size,
        "examples": len(split.train),
        "gradient_norm": minimum.gradient_norm,
        "newton_steps": minimum.steps,
        "train": loss_and_accuracy(done.model, *split.train.tensors),
        "test": loss_and_accuracy(done.model, *split.test.tensors),
    }
    folder.mkdir(parents=True, exist_ok=True)
    values = {key: value.detach() for key, value in done.model.named_parameters()}
    torch.save({"values": values, "facts": facts}, kept)
    return done, facts


def _with(stage: Stage, values: Mapping[str, Tensor], decay: float) -> Stage:
    return replace(with_values(stage, values), weight_decay=decay)


def _chain(before: Stage | None, stage: Stage) -> Chain:
    return Chain(stage) if before is None else Chain(before, stage)


def _drawn(task: Task, count: int, seed: int) -> tuple[Images, Images]:
    """Training examples, and others held out; of a small task at most a fifth is held out."""
    total = len(task.train)
    held = min(HELD_OUT, max(1, total // 5))
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    count = min(count, total - held)
    return task.train[order[:count]], task.train[order[count : count + held]]


def _pooled(images: Images) -> Tensor:
    channels, height, width = images.pixels.shape[1:]
    side = min(height, width, max(1, math.isqrt(INPUTS // channels)))
    return F.adaptive_avg_pool2d(images.pixels.double(), side).flatten(1)
