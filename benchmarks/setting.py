"""What the benchmarks run on: the digits 0-3, a small trained network, a large one, and what the command line asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from experiments.networks import ConvNet
from experiments.tasks import Task, two_tasks
from experiments.training import Training, train_classifier
from stagetrace import Stage
from stagetrace.objectives import Classification
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk

DATASET = "mnist"
PRETRAINED_CLASSES = (0, 1, 2, 3)
PRETRAINING = Training(epochs=40)
HESSIAN_EXAMPLES = 1000


@final
@dataclass(frozen=True)
class Asked:
    """One call of a benchmark.

    data: the folder that holds the data sets' folders.
    checkpoints: where the trained network lies or is to be kept; None trains it and forgets it.
    weights: folder of pretrained weights and their tokenizer, where a benchmark takes them.
    out: the file of what is found; a benchmark of hours writes it as it goes.
    other: another checkout of the project, for `beside`. only: the one benchmark that it compares; None compares all.
    rival: a Python that has another library installed, for `queries` and `ekfac`.
    quick: few examples, repetitions and epochs: to see that everything runs, not to quote.
    """

    data: Path
    checkpoints: Path | None = None
    quick: bool = False
    seed: int = 0
    out: Path | None = None
    weights: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    other: Path | None = None
    only: str | None = None
    rival: Path | None = None

    def repetitions(self, full: int) -> int:
        return 3 if self.quick else full

    @property
    def hessian_examples(self) -> int:
        return 200 if self.quick else HESSIAN_EXAMPLES

    def digits(self) -> Task:
        """The pretraining task of the experiment `mnist-frozen`."""
        first, _ = two_tasks(self.data / DATASET, PRETRAINED_CLASSES)
        return first.drawn(2000 if self.quick else None, self.seed).to(self.device)

    def plain(self) -> dict[str, Any]:
        """The settings, without places on the disk."""
        return {"quick": self.quick, "seed": self.seed, "hessian_examples": self.hessian_examples, "data": DATASET}


@final
class LargeConvNet(nn.Module):
    """About 421,000 parameters: two 3 x 3 convolutions at full resolution, tanh, average pooling.

    Example:
        >>> sum(p.numel() for p in LargeConvNet(classes=4).parameters())
        420868
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.Tanh(),
            nn.Linear(128, classes),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `[n, classes]` of pixels `[n, 1, 28, 28]`."""
        return self.layers(pixels)


def small_network(asked: Asked, task: Task) -> ConvNet:
    """The network of 11,780 parameters as the experiment's pretraining leaves it: from the disk, or trained now."""
    torch.manual_seed(asked.seed)
    model = ConvNet(task.train.pixels.shape[1:], len(task.classes)).to(asked.device)
    weights = asked.checkpoints / "pretrain.safetensors" if asked.checkpoints else None
    if weights is not None and weights.exists():
        load_model(model, weights)
        return model.eval()
    plan = Training(epochs=2 if asked.quick else PRETRAINING.epochs, seed=asked.seed)
    train_classifier(model, plan, task.train.pixels, task.train.labels)
    if weights is not None and not asked.quick:
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, str(weights))
    return model


def large_network(asked: Asked, task: Task) -> LargeConvNet:
    """The large network after one epoch: the work of a product does not depend on how well it was trained."""
    torch.manual_seed(asked.seed)
    model = LargeConvNet(len(task.classes)).to(asked.device)
    few = slice(0, 4096)
    train_classifier(model, Training(epochs=1, seed=asked.seed), task.train.pixels[few], task.train.labels[few])
    return model


def risk_of(model: nn.Module, data: Any, batch_size: int = 256) -> Risk:
    """The losses of the examples at the model's parameters."""
    stage = Stage("pretrain", model=model, objective=Classification(), data=data, batch_size=batch_size)
    return BoundStage.of(stage, None).risk


def batch_of(risk: Risk, indices: list[int]) -> Batch:
    """The examples as one batch."""
    return next(iter(risk.read([indices])))


def parameters(model: nn.Module) -> int:
    """How many there are."""
    return sum(p.numel() for p in model.parameters())
