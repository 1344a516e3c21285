"""Trainings to record and to run again: a chain of small networks, each stage trained by a loop that users write."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stagetrace import Chain, Query, Recording, Stage, Unrolled
from stagetrace.objectives import Classification

Optimizer = Callable[[list[Any]], torch.optim.Optimizer]
FEATURES, WIDTH, QUERIES = 4, 5, 6


class Net(nn.Module):
    """A body that stages share, by default a layer with dropout, and a head for so many classes."""

    def __init__(self, classes: int, dropout: float, body: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        plain = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Dropout(dropout))
        self.body = plain if body is None else body()
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass(frozen=True)
class Run:
    """One stage's training. freezes: whether the body is kept; split: a parameter group each for body and head.
    thaws: for so many batches the body rests, without a gradient.

    body: makes another one. first: is done to the model before it is trained. rests: the module that is in eval mode
    meanwhile, all of the model if "".
    """

    optimizer: Optimizer
    epochs: int = 3
    batch: int = 5
    clip: float | None = None
    accumulate: int = 1
    schedule: bool = False
    dropout: float = 0.0
    freezes: bool = False
    split: bool = False
    thaws: int = 0
    body: Callable[[], nn.Module] | None = None
    first: Callable[[nn.Module], None] = lambda _: None
    rests: str | None = None

    def groups(self, model: Net) -> list[Any]:
        """What the optimiser is given."""
        trained = [[p for p in part.parameters() if p.requires_grad] for part in (model.body, model.head)]
        if self.split:
            return [{"params": trained[0], "lr": 0.02}, {"params": trained[1]}]
        return [p for part in trained for p in part]


def data_of(examples: int, classes: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, FEATURES, dtype=torch.float64, generator=generator)
    return list(zip(x, torch.randint(0, classes, (examples,), generator=generator), strict=True))


def train(run: Run, model: Net, data: Sequence[Any], weights: Tensor, seed: int, folder: Path | None) -> None:
    """The loop; weights are those of the examples' losses, all 1 where it is recorded."""
    optimizer, device = run.optimizer(run.groups(model)), model.head.weight.device
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12) if run.schedule else None
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    numbered: Any = [(*row, index) for index, row in enumerate(data)]
    given: Any = numbered if folder is None else data
    loader = DataLoader(given, run.batch, shuffle=True, generator=order)
    recording = None if folder is None else Recording(folder, model, optimizer)
    batches, pending = 0, 0
    with recording or nullcontext():
        for _ in range(run.epochs):
            for x, y, *index in loader if recording is None else recording.loader(loader):
                losses = F.cross_entropy(model(x.to(device)), y.to(device), reduction="none")
                losses = losses * weights[index[0]].to(device) if index else losses
                (losses.mean() / run.accumulate).backward()
                if run.thaws > batches:
                    for p in model.body.parameters():
                        p.grad = None
                batches, pending = batches + 1, pending + 1
                if batches % run.accumulate:
                    continue
                if run.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), run.clip)
                optimizer.step()
                optimizer.zero_grad()
                pending = 0
                if schedule is not None:
                    schedule.step()


@dataclass(frozen=True)
class Stages:
    """A chain of runs, each stage with one class more than the one before; device: where the models are trained."""

    runs: tuple[Run, ...]
    examples: tuple[int, ...]
    device: str = "cpu"

    def data(self, stage: int) -> list[tuple[Tensor, Tensor]]:
        return data_of(self.examples[stage], 2 + stage, seed=10 + stage)

    @property
    def queries(self) -> list[tuple[Tensor, Tensor]]:
        return data_of(QUERIES, 1 + len(self.runs), seed=99)

    def models(self, weights: dict[int, Tensor], folder: Path | None = None) -> list[Net]:
        """Train all stages, the first to the last, each from the one before."""
        models = list[Net]()
        for stage, run in enumerate(self.runs):
            torch.manual_seed(stage)
            model = Net(2 + stage, run.dropout, run.body).double().to(self.device)
            if models:
                model.body.load_state_dict(models[-1].body.state_dict())
            model.body.requires_grad_(not run.freezes)
            run.first(model)
            if run.rests is not None:
                model.get_submodule(run.rests).eval()
            data = self.data(stage)
            given = weights.get(stage, torch.ones(len(data), dtype=torch.float64))
            train(run, model, data, given, 20 + stage, None if folder is None else folder / str(stage))
            models.append(model.eval())
        return models

    def losses(self, weights: dict[int, Tensor]) -> Tensor:
        """The query losses of the last model `[queries]`, trained with these weights."""
        model = self.models(weights)[-1]
        x, y = (torch.stack(each) for each in zip(*self.queries, strict=True))
        with torch.no_grad():
            return F.cross_entropy(model(x.to(self.device)), y.to(self.device), reduction="none").cpu()

    def chain(self, folder: Path) -> Chain:
        """The chain as recorded in a folder."""
        stages = [
            Stage(
                f"stage{stage}",
                model=model,
                objective=Classification(),
                data=self.data(stage),
                link=Unrolled("body" if stage else (), folder / str(stage)),
            )
            for stage, model in enumerate(self.models({}, folder))
        ]
        return Chain(*stages)

    def query(self, reduction: Any = "none") -> Query:
        return Query(self.queries, reduction=reduction)

    def slope(self, stage: int, example: int, step: float = 2e-4) -> Tensor:
        """The score of an example by training four times more, `[queries]`: central differences, extrapolated.

        The error is of order step^4; the first steps of a normalised optimiser are too curved for step^2.
        """

        def at(move: float) -> Tensor:
            weights = torch.ones(self.examples[stage], dtype=torch.float64)
            weights[example] += move
            return self.losses({stage: weights})

        coarse, fine = ((at(h) - at(-h)) / (2 * h) for h in (step, step / 2))
        return self.examples[stage] * (4 * fine - coarse) / 3
