"""The files that the processes are given, made when they are first asked for and kept in WORK/given."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.bench import images, text
from benchmarks.rivals.given import Given, Settings, layers
from benchmarks.setting import Asked
from stagetrace.curvature.subset import seeded_subset

DAMPING, TEXT_DAMPING = 0.01, 0.01
FEATURES, CLASSES, HIDDEN = 16, 4, 16
"""Of the drawn vectors, where the number of examples grows."""
WIDE, FEW = 784, 2000
"""Features and examples where the number of parameters grows."""
TESTS = 10
"""Queries of both."""


@final
@dataclass(frozen=True)
class Inputs:
    """Where they lie, what was asked, and how many sequences of text are scored."""

    asked: Asked
    work: Path
    texts: int

    def path(self, name: str) -> Path:
        """The file of this name; a name that was never made is made now."""
        settings = f"{'quick' if self.asked.quick else 'full'}-{self.asked.seed}"
        more = f"-{self.texts}" if name.startswith("text") else ""
        path = self.work / "given" / f"{name}-{settings}{more}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".part")
            self._made(name).write(temporary)
            temporary.rename(path)
        return path

    def _made(self, name: str) -> Given:
        kind, _, size = name.partition("-")
        if kind == "digits":
            return self._digits(size)
        if kind == "text":
            return self._text(int(size))
        if kind == "examples":
            return self._vectors(int(size), FEATURES, HIDDEN)
        if kind == "hidden":
            return self._vectors(200 if self.asked.quick else FEW, WIDE, int(size))
        return self._two_stages(frozen=kind == "frozen")

    def _chosen(self, total: int) -> tuple[int, ...]:
        return tuple(seeded_subset(total, self.asked.hessian_examples, self.asked.seed))

    def _given(self, settings: Settings, model: nn.Module, train: TensorDataset, tests: TensorDataset) -> Given:
        return Given(settings, model, train, tests, self._chosen(len(train)))

    def _digits(self, queries: str) -> Given:
        task, model = images.pretrained(self.asked)
        mean = queries == "mean"
        few = int(queries) if not mean else 200 if self.asked.quick else len(task.test)
        tests = TensorDataset(task.test.pixels[:few], task.test.labels[:few])
        settings = Settings("images", DAMPING, mean=mean, seed=self.asked.seed, drawn_by=self.asked.seed)
        return self._given(settings, model, TensorDataset(task.train.pixels, task.train.labels), tests)

    def _text(self, queries: int) -> Given:
        """Sequences drawn from those that the model was trained on; queries of the validation text."""
        train, validation = text.sequences(self.asked)
        model = text.language_model(self.asked, self.work / "checkpoints", train)
        of = text.sizes(self.asked)
        own = list(seeded_subset(of.steps * of.batch, self.texts, self.asked.seed))
        seed = self.asked.seed
        settings = Settings("tokens", TEXT_DAMPING, batch=8, seed=seed, drawn_by=seed, config=of.config())
        return self._given(settings, model, TensorDataset(train[own]), TensorDataset(validation[:queries]))

    def _vectors(self, examples: int, features: int, hidden: int) -> Given:
        """Untrained: what is looked at is the work."""
        generator = torch.Generator().manual_seed(self.asked.seed)
        torch.manual_seed(self.asked.seed)
        model = layers(features, hidden, CLASSES)

        def drawn(count: int) -> TensorDataset:
            x = torch.randn(count, features, generator=generator)
            labels = torch.randint(CLASSES, (count,), generator=generator)
            labels[:CLASSES] = torch.arange(CLASSES)
            return TensorDataset(x, labels)

        settings = Settings("vectors", DAMPING, seed=self.asked.seed, drawn_by=self.asked.seed)
        return self._given(settings, model, drawn(examples), drawn(TESTS))

    def _two_stages(self, *, frozen: bool) -> Given:
        """The pretraining stage; its settings name the file of the fine-tuning."""
        task, model = images.pretrained(self.asked)
        other, tuned = images.finetuned(self.asked, self.work / "checkpoints", model, frozen=frozen)
        tests = TensorDataset(other.test.pixels, other.test.labels)
        seed = self.asked.seed
        second = self._given(
            Settings("images", DAMPING, mean=True, seed=seed, drawn_by=seed),
            tuned,
            TensorDataset(other.train.pixels, other.train.labels),
            tests,
        )
        path = self.work / "given" / f"second-{'frozen' if frozen else 'proximal'}-{self.asked.quick}.safetensors"
        second.write(path)
        config = {"finetune": str(path.absolute())}
        settings = Settings("images", DAMPING, mean=True, seed=seed, drawn_by=seed, config=config)
        return self._given(settings, model, TensorDataset(task.train.pixels, task.train.labels), tests)
