"""Both stages of several networks at once, each on its own part of the pretraining examples, in the same batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.checkpoints import Checkpoints, Record, digest
from experiments.image_stages import given, untrained
from experiments.networks import ConvNet, ConvNets
from experiments.tasks import Task
from experiments.training import Training, minimise
from stagetrace.progress import Progress

AT_ONCE = 8


@final
@dataclass(frozen=True, eq=False)
class Pair:
    """A pretrained network, the fine-tuned one on its embedding, and the seconds that training took (its share)."""

    base: ConvNet
    model: ConvNet
    seconds: float


def train_together(
    models: nn.Module, plan: Training, inputs: Tensor, labels: Tensor, weights: Tensor, progress: Progress
) -> None:
    """Train several models at once, each as if alone, in the same batches, each on its own examples.

    Args:
        models: gives logits `[models, batch, classes]`; its parameters share no number between models.
        plan: of each.
        inputs: `[n, ...]` for all models, or `[models, n, ...]`.
        labels: `[n]`.
        weights: `[models, n]`, 1 or 0: whether a model sees the example. A batch's loss is the mean over those that it
            sees, so a model without some examples takes the same steps as its control.
        progress: counts the steps.
    """
    each = inputs.shape[: weights.ndim] == weights.shape
    batches = [torch.tensor(rows, device=labels.device) for rows in plan.batches(len(labels))]

    def loss(rows: Tensor) -> Tensor:
        logits = models(inputs[:, rows] if each else inputs[rows])
        losses = F.cross_entropy(logits.flatten(0, 1), labels[rows].repeat(len(weights)), reduction="none")
        seen = weights[:, rows]
        return ((losses.view_as(seen) * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)).sum()

    with progress.task(f"training {len(weights)} networks", len(batches), "steps") as advance:
        minimise(models, plan, batches, len(batches), loss, advance)


@final
@dataclass(frozen=True)
class BatchedStages:
    """Trains both stages of networks from scratch, several at once, or finds them in the store; the embedding is kept.

    tasks, plans: of both stages. A plan's seed gives the order of the batches, common to all networks.
    """

    store: Checkpoints
    tasks: tuple[Task, Task]
    plans: tuple[Training, Training]
    progress: Progress

    def train(self, name: str, draws: Sequence[int], kept: Tensor) -> list[Pair]:
        """A network for each draw of initial weights.

        kept: `[networks, n]`, 1 where a network sees the pretraining example, 0 where it does not.
        """
        done = list[Pair]()
        for start in range(0, len(draws), AT_ONCE):
            few = slice(start, start + AT_ONCE)
            done += self._together(f"{name}-{start // AT_ONCE}", draws[few], kept[few])
        return done

    def _together(self, name: str, draws: Sequence[int], kept: Tensor) -> list[Pair]:
        first, second = self.tasks
        pairs = [untrained(draw, first, len(first.classes), len(second.classes)) for draw in draws]
        bases, models = ([pair[place] for pair in pairs] for place in (0, 1))
        several = ConvNets(bases)
        pixels, labels = first.train.pixels, first.train.labels

        def pretrain() -> Record:
            train_together(several, self.plans[0], pixels, labels, kept.to(pixels), self.progress)
            return {}

        own = {**given(first, self.plans[0]), "draws": list(draws), "kept": [digest(row.bool()) for row in kept]}
        seconds = self.store.trained(f"{name}-pretrain", several, own, pretrain)["seconds"]
        several.put_into(bases)
        for base, model in zip(bases, models, strict=True):
            model.embedding.load_state_dict(base.embedding.state_dict())
        heads = ConvNets(models)

        def finetune() -> Record:
            """The heads, on what the embeddings make of the images, computed once."""
            with torch.no_grad():
                inputs = torch.cat([heads.embed(few) for few in second.train.pixels.split(1024)], dim=1)
            seen = torch.ones(inputs.shape[:2], device=inputs.device)
            train_together(heads.heads, self.plans[1], inputs, second.train.labels, seen, self.progress)
            return {}

        own = {**given(second, self.plans[1]), "pretrained": [digest(*base.state_dict().values()) for base in bases]}
        seconds += self.store.trained(f"{name}-finetune", heads.heads, own, finetune)["seconds"]
        heads.put_into(models)
        return [
            Pair(base.eval(), model.eval(), seconds / len(draws)) for base, model in zip(bases, models, strict=True)
        ]
