"""What the command line asked for."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import torch


@final
@dataclass(frozen=True)
class Settings:
    """One call of an experiment.

    data: the folder that holds the data sets' folders.
    out: the folder of everything the experiment writes, or of what one of its seeds does; the same call resumes there.
    seed: of the weights, the order of the batches and every draw.
    examples: at most so many training examples a stage, drawn by the seed; None takes the experiment's own numbers.
    device: where the models live.
    dataset: a folder that stands in for the experiment's own data set: inside `data`, or a path.
    size: which of an experiment's sizes, where it has several; None takes its first.
    weights: a folder of published weights and their tokenizer, where an experiment begins with such.
    root: the `out` of the whole experiment, where these are the settings of one seed.
    """

    data: Path
    out: Path
    seed: int = 0
    examples: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dataset: str | None = None
    size: str | None = None
    root: Path = Path()
    weights: Path | None = None

    def of_seed(self, seed: int) -> "Settings":
        """The settings of one seed of the experiment: the first lies in `out` itself, the others in folders there."""
        out = self.out if seed == self.seed else self.out / f"seed-{seed}"
        return replace(self, seed=seed, out=out, root=self.out)

    def folder(self, own: str) -> Path:
        """The data set to read: `--dataset` if given, or the experiment's own."""
        inside = self.data / (self.dataset or own)
        return Path(self.dataset) if self.dataset and not inside.is_dir() else inside

    def most(self, count: int) -> int:
        """The experiment's own number of examples, or what `--examples` caps it at."""
        return min(self.examples or count, count)

    @property
    def dataset_name(self) -> str | None:
        """The stand-in's folder name; the path is omitted for privacy."""
        return Path(self.dataset).name if self.dataset else None
