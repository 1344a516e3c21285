"""A chain small enough to be solved to a strict minimum in float64: pooled images, one tanh layer, a linear head.

Weight decay is chosen for each stage by the loss on held-out training examples, before anything is scored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.checkpoints import Checkpoints, Record, digest
from experiments.images import Images
from experiments.networks import Dense
from experiments.settings import Settings
from experiments.tasks import Task, two_tasks
from experiments.training import quality
from stagetrace import Chain, Frozen, Proximal, Query, Stage
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.stages.links import Link
from stagetrace.stages.revalued import with_values
from stagetrace.validation.newton import minimise

INPUTS = 108
"""Pixels after pooling, at most, over all channels."""
HIDDEN = 16
EXAMPLES = 5000
HELD_OUT = 1000
DECAYS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
LINKS: dict[str, Link] = {"frozen": Frozen("embedding"), "updated": Proximal("embedding", alpha=0.01)}
"""The paper's alpha."""


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
    facts: Record


def solved(
    settings: Settings, own: str, first_classes: tuple[int, ...], store: Checkpoints, progress: Progress
) -> dict[str, Solved]:
    """The chain with the embedding kept and the one with it updated, over the same pretraining; kept in the store."""
    first, second = splits(settings, own, first_classes)
    inputs, device = first.train.tensors[0].shape[1], settings.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        before, after = (Dense(inputs, HIDDEN, split.classes).double().to(device) for split in (first, second))
    pretrain, facts = _best("pretrain", before, first, None, None, store, progress)
    after.embedding.load_state_dict(pretrain.model.get_submodule("embedding").state_dict())
    query, found = Query(second.test, batch_size=len(second.test)), dict[str, Solved]()
    for name, link in LINKS.items():
        finetune, later = _best(f"finetune-{name}", after, second, link, pretrain, store, progress)
        found[name] = Solved(Chain(pretrain, finetune), query, {"pretrain": facts, "finetune": later})
    return found


def splits(settings: Settings, own: str, first_classes: tuple[int, ...]) -> tuple[Split, Split]:
    """Both tasks; pooled, and standardised by the pretraining images."""
    tasks = two_tasks(settings.folder(own), first_classes)
    drawn = [_drawn(task, settings.most(EXAMPLES), settings.seed) for task in tasks]
    pixels = _pooled(drawn[0][0])
    mean, scale = pixels.mean(dim=0), pixels.std()

    def features(images: Images) -> TensorDataset:
        return TensorDataset(((_pooled(images) - mean) / scale).to(settings.device), images.labels.to(settings.device))

    one, two = (
        Split(features(train), features(held_out), features(task.test), len(task.classes))
        for task, (train, held_out) in zip(tasks, drawn, strict=True)
    )
    return one, two


def _best(
    name: str,
    model: Dense,
    split: Split,
    link: Link | None,
    before: Stage | None,
    store: Checkpoints,
    progress: Progress,
) -> tuple[Stage, Record]:
    """The stage solved at the weight decay with the least held-out loss, each tried from the one before."""
    stage = Stage(
        name.split("-")[0],
        model=model,
        objective=Classification(),
        data=split.train,
        link=link,
        weight_decay=DECAYS[0],
        batch_size=len(split.train),
    )
    own = dict(model.named_parameters())
    done = with_values(stage, {})

    def problem_with(values: Mapping[str, Tensor], decay: float) -> Chain:
        trial = replace(with_values(stage, values), weight_decay=decay)
        return Chain(trial) if before is None else Chain(before, trial)

    def train() -> Record:
        losses, start = dict[float, float](), own
        for decay in DECAYS:
            bound = problem_with(start, decay)[stage.name]
            start = {**start, **minimise(bound, tolerance=1e-3, strict=False, progress=progress).values}
            pixels, labels = split.held_out.tensors
            losses[decay] = quality(with_values(stage, start).model(pixels), labels)["loss"]
        decay = min(losses, key=lambda each: losses[each])
        bound = problem_with(own, decay)[stage.name]
        minimum = minimise(bound, tolerance=1e-10, max_steps=500, progress=progress)
        done.model.load_state_dict({**own, **minimum.checked()})
        parts = {"train": split.train.tensors, "test": split.test.tensors}
        return {
            "weight_decay": decay,
            "held_out_loss": {f"{each:g}": loss for each, loss in losses.items()},
            "parameters": bound.trained.size,
            "examples": len(split.train),
            "gradient_norm": minimum.gradient_norm,
            "newton_steps": minimum.steps,
            **{part: quality(done.model(pixels), labels) for part, (pixels, labels) in parts.items()},
        }

    given = {"link": repr(link), "decays": DECAYS, "data": digest(*split.train.tensors), "start": digest(*own.values())}
    facts = store.trained(name, done.model, given, train)
    return replace(done, weight_decay=facts["weight_decay"]), facts


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
