"""What a process is given: one safetensors file with a model's weights, its examples and queries, and settings."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from experiments.networks import ConvNet

Kind = Literal["images", "vectors", "tokens"]
Batch = Sequence[Tensor]


@final
@dataclass(frozen=True)
class Settings:
    """kind: "images" for a ConvNet, "vectors" for two linear layers, "tokens" for a GPT-2; config: of the GPT-2.

    damping: of the library's system; rtol, most: the relative residual asked for and the most products of a solve.
    mean: one query, the mean loss of all test examples; otherwise each test example is a query.
    batch: examples at a time. memory: bytes that a process may hold. seed: of every draw. drawn_by: the seed that drew
    the curvature's examples.
    """

    kind: Kind = "images"
    damping: float = 0.01
    rtol: float = 1e-3
    most: int = 200
    mean: bool = False
    batch: int = 1024
    memory: int = 12 * 2**30
    seed: int = 0
    drawn_by: int = 0
    config: dict[str, Any] = field(default_factory=dict[str, Any])


@final
@dataclass(frozen=True, eq=False)
class Given:
    """The model in evaluation mode, all examples, the queries, and the examples that the curvature averages over."""

    settings: Settings
    model: nn.Module
    train: TensorDataset
    tests: TensorDataset
    chosen: tuple[int, ...]

    @property
    def curvature(self) -> Subset[tuple[Tensor, ...]]:
        return Subset(self.train, self.chosen)

    @property
    def curvature_batch(self) -> Batch:
        """The curvature's examples as one batch."""
        return [part[list(self.chosen)] for part in self.train.tensors]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits `[batch, classes]`, or `[batch, length - 1, words]` of each next token."""
        found: Any = model(batch[0])
        return found.logits[:, :-1] if self.settings.kind == "tokens" else found

    def targets(self, batch: Batch) -> Tensor:
        return batch[0][:, 1:] if self.settings.kind == "tokens" else batch[1]

    def losses(self, model: nn.Module, batch: Batch, *, sample: bool = False) -> Tensor:
        """One cross-entropy an example, the mean over a sequence's tokens; sample: of labels that the model draws."""
        logits, targets = self.outputs(model, batch), self.targets(batch)
        if sample:
            with torch.no_grad():
                targets = torch.multinomial(logits.flatten(0, -2).softmax(dim=-1), 1).reshape(targets.shape)
        each = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        return each.reshape(targets.shape).flatten(1).mean(dim=1) if targets.ndim > 1 else each

    def query_gradient(self) -> tuple[Tensor, ...]:
        """Of the mean loss of the queries."""
        loss = self.losses(self.model, self.tests.tensors).mean()
        return torch.autograd.grad(loss, list(self.model.parameters()))

    def write(self, path: Path) -> None:
        state = {name: value for name, value in self.model.state_dict().items() if name != "lm_head.weight"}  # tied
        tensors = {f"model.{name}": value for name, value in state.items()}
        for kind, data in (("train", self.train), ("tests", self.tests)):
            tensors |= {f"{kind}.{place}": part for place, part in enumerate(data.tensors)}
        tensors["chosen"] = torch.tensor(self.chosen)
        words = {"settings": json.dumps(asdict(self.settings))}
        save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, path, words)

    @staticmethod
    def read(path: Path) -> "Given":
        with safe_open(path, "pt") as file:
            settings = Settings(**json.loads(file.metadata()["settings"]))
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

        def data(kind: str) -> TensorDataset:
            return TensorDataset(*(tensors[name] for name in sorted(tensors) if name.startswith(f"{kind}.")))

        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        train = data("train")
        model = made(settings, weights, train).eval()
        model.load_state_dict(weights, strict=settings.kind != "tokens")
        return Given(settings, model, train, data("tests"), tuple(tensors["chosen"].tolist()))


def made(settings: Settings, weights: dict[str, Tensor], train: TensorDataset) -> nn.Module:
    """The model, before its weights are loaded."""
    if settings.kind == "images":
        return ConvNet(train.tensors[0].shape[1:], int(train.tensors[1].max()) + 1)
    if settings.kind == "vectors":
        first, last = weights["0.weight"], weights["2.weight"]
        return layers(first.shape[1], first.shape[0], last.shape[0])
    return gpt2(settings.config)


def layers(features: int, hidden: int, classes: int) -> nn.Module:
    """Two linear layers and a tanh between them."""
    return nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, classes))


def gpt2(config: dict[str, Any]) -> nn.Module:
    """A GPT-2 without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape: Any = GPT2Config
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "use_cache": False}
    return GPT2LMHeadModel(shape(**config, **none, attn_implementation="eager"))
