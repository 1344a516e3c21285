"""Loops as users write them, recorded and run again with an example's weight moved: scores are the slopes."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler

from stagetrace import Chain, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Classification
from stagetrace.validation import Rerun, TopRemovals, validate
from tests.replay.runs import data_of

DATA: Any = data_of(13, 3, seed=1)
QUERIES: Any = data_of(5, 3, seed=9)
STEP = 1e-4


class OwnAdam(torch.optim.Adam):
    """Steps as its parent, and is made in its own way."""

    def __init__(self, parameters: Any, rate: float) -> None:
        super().__init__(parameters, lr=rate)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def thaw(model: nn.Sequential, number: int) -> None:
    """The first layer is frozen by its face for some steps, and trained from then on."""
    model[0].requires_grad_(number >= 3)


@dataclass(frozen=True)
class Loop:
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    before: Callable[[nn.Sequential, int], None] = lambda model, number: None
    again: bool = False  # examples are drawn with replacement

    def train(self, weights: Tensor, folder: Path | None = None) -> nn.Sequential:
        torch.manual_seed(0)
        model, order = plain(), torch.Generator().manual_seed(3)
        self.before(model, 0)
        optimizer = self.optimizer(model)
        rows: Any = DATA if folder else [(*row, index) for index, row in enumerate(DATA)]
        sampler = RandomSampler(rows, replacement=self.again, num_samples=13, generator=order)
        loader: Any = DataLoader(rows, 4, sampler=sampler)
        recording = Recording(folder, model, optimizer) if folder else None
        with recording or nullcontext():
            for number, (x, y, *ids) in enumerate(twice(recording.loader(loader) if recording else loader)):
                self.before(model, number)
                losses = F.cross_entropy(model(x), y, reduction="none")
                optimizer.zero_grad()
                (losses if recording else losses * weights[ids[0]]).mean().backward()
                optimizer.step()
        return model.eval()

    def slope(self, example: int) -> float:
        """The score by training twice more, central differences."""
        ends = list[float]()
        x, y = (torch.stack(each) for each in zip(*QUERIES, strict=True))
        for move in (STEP, -STEP):
            weights = torch.ones(13, dtype=torch.float64)
            weights[example] += move
            ends.append(float(F.cross_entropy(self.train(weights)(x), y).detach()))
        return 13 * (ends[0] - ends[1]) / (2 * STEP)


def twice(loader: Any) -> Iterator[Any]:
    for _ in range(2):
        yield from loader


LOOPS = {
    "an optimiser of a class of one's own that steps as its parent": Loop(lambda m: OwnAdam(m.parameters(), 0.02)),
    "a layer that is thawed midway": Loop(lambda m: torch.optim.Adam(m.parameters(), lr=0.02), before=thaw),
    "examples drawn with replacement": Loop(
        lambda m: torch.optim.SGD(m.parameters(), lr=0.2, momentum=0.9), again=True
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_scores_are_the_slopes_of_training_again(name: str, tmp_path: Path):
    loop = LOOPS[name]
    model = loop.train(torch.ones(13), tmp_path)
    stage = Stage("only", model=model, objective=Classification(), data=DATA, link=Unrolled(recording=tmp_path))
    values = trace(Chain(stage), Query(QUERIES))["only"].values
    found = torch.tensor([loop.slope(example) for example in range(3)], dtype=torch.float64)
    assert torch.allclose(values[:3], found, rtol=1e-4, atol=1e-7)
    assert bool((found.abs() > 1e-3).any())


def test_a_class_of_one_s_own_is_repeated_as_its_parent(tmp_path: Path):
    loop = LOOPS["an optimiser of a class of one's own that steps as its parent"]
    model = loop.train(torch.ones(13), tmp_path)
    stage = Stage("only", model=model, objective=Classification(), data=DATA, link=Unrolled(recording=tmp_path))
    found = validate(Chain(stage), Query(QUERIES), fit=Rerun(), choices=[TopRemovals(3, by=0.01)], processes=1)
    assert abs(found.control.loss - found.control.traced) < 1e-9


def test_two_data_sets_of_one_size_are_told_apart(tmp_path: Path):
    """Their examples share their numbers. The first and the last pass go over the stage's data, all others do not."""
    other: Any = data_of(13, 3, seed=2)
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(tmp_path, model, optimizer) as recording:
        for rows in (DATA, other, other, DATA, DATA, DATA):
            for x, y in recording.loader(DataLoader(rows, 4)):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    link = Unrolled(recording=tmp_path)
    stage = Stage("only", model=model.eval(), objective=Classification(), data=DATA, link=link)
    with pytest.raises(DescriptionError, match=r"not those that were recorded .*of several data sets one that holds"):
        trace(Chain(stage), Query(QUERIES))
