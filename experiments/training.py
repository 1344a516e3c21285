"""The one training loop of all experiments, Adam at a rate that falls along a cosine, and how well it went."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace import Stage
from stagetrace.progress import Advance, Progress, Silent
from stagetrace.validation.fits.steps import orders

B = TypeVar("B")
SILENT = Silent()


@final
@dataclass(frozen=True)
class Training:
    """Adam on `mean loss + weight_decay / 2 * |parameters|^2`, batches in an order drawn by the seed.

    The penalty is part of the loss (Adam's `weight_decay`, not AdamW's), so it belongs to the stage's Hessian.
    The rate falls to zero along a cosine: at a constant rate Adam circles around the minimum, and the influence
    function assumes that it was reached.
    """

    epochs: int
    rate: float = 1e-3
    batch: int = 512
    weight_decay: float = 0.0
    seed: int = 0

    def seeded(self, seed: int) -> "Training":
        return replace(self, seed=seed)

    def batches(self, examples: int) -> list[list[int]]:
        """The rows of every step's batch."""
        return orders(examples, self.batch, self.epochs * -(-examples // self.batch), self.seed)

    def optimiser(self, model: nn.Module, steps: int) -> tuple[Any, Any]:
        """Adam on what is trained of the model, and its schedule."""
        trained = [p for p in model.parameters() if p.requires_grad]
        adam = torch.optim.Adam(trained, lr=self.rate, weight_decay=self.weight_decay)
        return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)


def minimise(
    model: nn.Module, plan: Training, batches: Iterable[B], steps: int, loss: Callable[[B], Tensor], advance: Advance
) -> Mapping[str, Any]:
    """Train the model in place, a step for each batch; returns Adam's state at the end."""
    optimiser, schedule = plan.optimiser(model, steps)
    model.train()
    for batch in batches:
        optimiser.zero_grad()
        loss(batch).backward()
        optimiser.step()
        schedule.step()
        advance(1)
    model.eval()
    return optimiser.state_dict()


def train_stage(stage: Stage, plan: Training, progress: Progress) -> Mapping[str, Any]:
    """Train a stage's model on the loss that the stage describes: the mean over a batch of each example's own loss."""
    model, objective = stage.model, stage.loss
    batches = plan.batches(len(stage.examples))

    def loss(batch: Any) -> Tensor:
        return objective.losses(objective.outputs(model, batch.content), batch.content).mean()

    with progress.task(f"training {stage.where}", len(batches), "steps") as advance:
        return minimise(model, plan, stage.examples.read(batches), len(batches), loss, advance)


def train_classifier(
    model: nn.Module, plan: Training, inputs: Tensor, labels: Tensor, what: str = "", progress: Progress = SILENT
) -> Mapping[str, Any]:
    """Train a model on the mean cross-entropy of examples that are in memory as tensors."""
    batches = [torch.tensor(rows, device=labels.device) for rows in plan.batches(len(labels))]

    def loss(rows: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs[rows]), labels[rows])

    with progress.task(f"training {what}", len(batches), "steps") as advance:
        return minimise(model, plan, batches, len(batches), loss, advance)


@torch.no_grad()
def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's outputs on all inputs, a thousand at a time."""
    return torch.cat([model(few) for few in inputs.split(1024)])


def quality(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean cross-entropy (nats) and share of right answers (0 to 1)."""
    right = (logits.argmax(dim=1) == labels).double().mean().item()
    return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": right}


def gradient_norm(model: nn.Module, inputs: Tensor, labels: Tensor, weight_decay: float) -> float:
    """The length of the gradient of what was minimised, penalty included; 0 at a minimum."""
    trained = list(model.parameters())
    total = [weight_decay * p.detach().double() for p in trained]
    for few, right in zip(inputs.split(1024), labels.split(1024), strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(few), right, reduction="sum"), trained)
        total = [sofar + g.double() / len(labels) for sofar, g in zip(total, gradients, strict=True)]
    return sum(t.square().sum().item() for t in total) ** 0.5


def count_of(model: nn.Module) -> int:
    """How many numbers of the model are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
