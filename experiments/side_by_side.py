"""Both stages of several networks at once, each on its own part of the pretraining examples, in the same batches."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from experiments.checkpoints import Record, digest, trained
from experiments.networks import ConvNet, ConvNets
from experiments.tasks import Task
from experiments.training import Training
from experiments.two_stages import digest_of, untrained
from stagetrace.progress import Progress

AT_ONCE = 8


@final
@dataclass(frozen=True, eq=False)
class Both:
    """A pretrained network, the fine-tuned one on its embedding, and the seconds that training took (its share)."""

    base: ConvNet
    model: ConvNet
    seconds: float


def both_stages(
    folder: Path,
    name: str,
    draws: Sequence[int],
    kept: Tensor,
    tasks: tuple[Task, Task],
    plans: tuple[Training, Training],
    progress: Progress,
) -> list[Both]:
    """Train (or find in `folder`) a network for each draw of initial weights, from scratch; the embedding is kept.

    kept: `[networks, n]`, 1 where a network sees the pretraining example, 0 where it does not.
    tasks, plans: of both stages. A plan's seed gives the order of the batches, common to all networks.
    """
    done: list[Both] = []
    for start in range(0, len(draws), AT_ONCE):
        few = slice(start, start + AT_ONCE)
        done += _some(folder, f"{name}-{start // AT_ONCE}", draws[few], kept[few], tasks, plans, progress)
    return done


def _some(
    folder: Path,
    name: str,
    draws: Sequence[int],
    kept: Tensor,
    tasks: tuple[Task, Task],
    plans: tuple[Training, Training],
    progress: Progress,
) -> list[Both]:
    first, second = tasks
    pairs = [untrained(draw, first, len(first.classes), len(second.classes)) for draw in draws]
    bases, models = ([pair[place] for pair in pairs] for place in (0, 1))
    several = ConvNets(bases)
    given: Record = {
        "training": asdict(plans[0]),
        "classes": first.classes,
        "data": digest(first.train),
        "draws": list(draws),
        "kept": [hashlib.sha256(row.bool().cpu().numpy().tobytes()).hexdigest() for row in kept],
    }
    words = f"pretraining {len(draws)} networks"
    seen = kept.to(first.train.pixels)
    train = partial(_run, several, first.train.pixels, first, seen, plans[0], words, progress)
    seconds = trained(folder, f"{name}-pretrain", several, given, train)["seconds"]
    several.put_into(bases)
    for base, model in zip(bases, models, strict=True):
        model.embedding.load_state_dict(base.embedding.state_dict())
    heads = ConvNets(models)
    given = {
        "training": asdict(plans[1]),
        "classes": second.classes,
        "data": digest(second.train),
        "pretrained": [digest_of(base) for base in bases],
    }
    finetune = partial(_finetune, heads, second, plans[1], progress)
    seconds += trained(folder, f"{name}-finetune", heads.heads, given, finetune)["seconds"]
    heads.put_into(models)
    for network in (*bases, *models):
        network.eval()
    return [Both(base, model, seconds / len(draws)) for base, model in zip(bases, models, strict=True)]


def _finetune(several: ConvNets, task: Task, plan: Training, progress: Progress) -> Record:
    """Train the heads on what the embeddings make of the images, computed once."""
    with torch.no_grad():
        inputs = torch.cat([several.embed(few) for few in task.train.pixels.split(1024)], dim=1)
    weights = torch.ones(inputs.shape[:2], device=inputs.device)
    return _run(several.heads, inputs, task, weights, plan, f"fine-tuning {len(weights)} networks", progress)


def _run(
    models: nn.Module, inputs: Tensor, task: Task, weights: Tensor, plan: Training, words: str, progress: Progress
) -> dict[str, Any]:
    started = time.perf_counter()
    with progress.task(words, plan.epochs, "epochs") as advance:
        plan.run_several(models, inputs, task.train.labels, weights, lambda epoch: advance(1))
    return {"seconds": time.perf_counter() - started}
