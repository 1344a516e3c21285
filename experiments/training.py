"""How a stage was trained, in plain PyTorch, and how well it was."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Watch = Callable[[int], None]
"""Called with the number of the epoch that has just ended, from 1."""


@final
@dataclass(frozen=True)
class Training:
    """Adam on `mean cross-entropy + weight_decay / 2 * |parameters|^2`, batches in an order drawn by the seed.

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

    def run(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, watch: Watch = lambda epoch: None
    ) -> Mapping[str, Any]:
        """Train all of the model's parameters, in place; returns Adam's state at the end."""
        optimiser = torch.optim.Adam(model.parameters(), lr=self.rate, weight_decay=self.weight_decay)
        steps = self.epochs * -(-len(labels) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        generator = torch.Generator().manual_seed(self.seed)
        model.train()
        for epoch in range(1, self.epochs + 1):
            for chosen in torch.randperm(len(labels), generator=generator).to(labels.device).split(self.batch):
                optimiser.zero_grad()
                F.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
                optimiser.step()
                schedule.step()
            watch(epoch)
        model.eval()
        return optimiser.state_dict()

    def run_several(
        self,
        models: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        weights: Tensor,
        watch: Watch = lambda epoch: None,
    ) -> None:
        """Train several models side by side, each as `run` would, in the same batches, each on its own examples.

        Args:
            models: gives logits `[models, batch, classes]`; its parameters share no number between models.
            inputs: `[n, ...]` for all models, or `[models, n, ...]`.
            labels: `[n]`.
            weights: `[models, n]`, 1 or 0: whether a model sees the example. A batch's loss is the mean over those
                that it sees, so a model without some examples takes the same steps as its control.
            watch: called after each epoch.
        """
        each = inputs.shape[: weights.ndim] == weights.shape
        optimiser = torch.optim.Adam(models.parameters(), lr=self.rate, weight_decay=self.weight_decay)
        steps = self.epochs * -(-len(labels) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        generator = torch.Generator().manual_seed(self.seed)
        models.train()
        for epoch in range(1, self.epochs + 1):
            for chosen in torch.randperm(len(labels), generator=generator).to(labels.device).split(self.batch):
                optimiser.zero_grad()
                logits = models(inputs[:, chosen] if each else inputs[chosen])
                losses = F.cross_entropy(logits.flatten(0, 1), labels[chosen].repeat(len(weights)), reduction="none")
                seen = weights[:, chosen]
                means = (losses.view_as(seen) * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
                means.sum().backward()
                optimiser.step()
                schedule.step()
            watch(epoch)
        models.eval()


@torch.no_grad()
def loss_and_accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean cross-entropy (nats) and share of right answers (0 to 1)."""
    logits = torch.cat([model(batch) for batch in inputs.split(1024)])
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": (logits.argmax(dim=1) == labels).double().mean().item(),
    }


def gradient_norm(model: nn.Module, inputs: Tensor, labels: Tensor, weight_decay: float) -> float:
    """The length of the gradient of what was minimised, penalty included; 0 at a minimum."""
    trained = list(model.parameters())
    total = [weight_decay * p.detach().double() for p in trained]
    for few, right in zip(inputs.split(1024), labels.split(1024), strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(few), right, reduction="sum"), trained)
        total = [sofar + g.double() / len(labels) for sofar, g in zip(total, gradients, strict=True)]
    return _length(total)


def _length(tensors: Iterable[Tensor]) -> float:
    return sum(t.square().sum().item() for t in tensors) ** 0.5
