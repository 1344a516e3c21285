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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, RandomSampler

from stagetrace import Chain, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DataError, DescriptionError, StagetraceWarning
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


def averaged(folder: Path, rate: float) -> Chain:
    """A stage in float32 that ended at a moving average which takes over a ten thousandth at each step."""
    torch.manual_seed(0)
    model, rows = plain().float(), [(x.float(), y) for x, y in DATA]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
    average.n_averaged += 1  # its first update is no copy
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    with Recording(folder, model, optimizer, average=average) as recording:
        for x, y in twice(recording.loader(DataLoader(rows, 2))):  # type: ignore[arg-type]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            average.update_parameters(model)
    link = Unrolled(recording=folder)
    return Chain(Stage("only", model=average.module.eval(), objective=Classification(), data=rows, link=link))


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 3)).double()


def thaw(model: nn.Sequential, number: int) -> None:
    """The first layer is frozen by its face for some steps, and trained from then on."""
    model[0].requires_grad_(number >= 3)


def look(model: nn.Sequential, number: int) -> None:
    """A forward pass for the eye alone, which draws masks before the one that goes backward."""
    if number:
        with torch.no_grad():
            model(DATA[0][0])


@dataclass(frozen=True)
class Loop:
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    before: Callable[[nn.Sequential, int], None] = lambda model, number: None
    again: bool = False  # examples are drawn with replacement
    skips: bool = False  # of every third batch nothing goes backward

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
                if self.skips and number % 3 == 1:
                    continue
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
    "a look before the forward pass": Loop(lambda m: torch.optim.SGD(m.parameters(), lr=0.2), before=look),
    "batches that are skipped": Loop(lambda m: torch.optim.SGD(m.parameters(), lr=0.2, momentum=0.9), skips=True),
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
    assert found.control.loss == pytest.approx(found.control.traced, abs=1e-9)


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


def test_an_average_that_rounding_held_back_is_said(tmp_path: Path):
    """At the smaller rate each update is below half a digit of float32, and the average hardly goes anywhere."""
    query = Query([(x.float(), y) for x, y in QUERIES])
    assert "hardly farther" not in str(trace(averaged(tmp_path / "far", 1e-2), query).solutions["only"].notes)
    with pytest.warns(StagetraceWarning, match=r"went hardly farther than its updates were rounded .* far too small"):
        found = trace(averaged(tmp_path / "near", 1e-5), query)
    assert "hardly farther" in str(found.solutions["only"].notes)


def test_an_average_in_another_precision_is_refused(tmp_path: Path):
    model = plain().float()
    optimizer = torch.optim.Adam(model.parameters())
    with (
        pytest.raises(DescriptionError, match=r"its '0\.weight' is of torch\.float64, the model's of torch\.float32"),
        Recording(tmp_path, model, optimizer, average=AveragedModel(model).double()),
    ):
        pass


class Rows(nn.Module):
    """Rows of a table, of which a batch reads some."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x)


def test_a_row_that_was_set_by_hand_before_any_batch_read_it_is_refused(tmp_path: Path):
    """Its gradients were all 0, so that it is no entry that rounding moved; its start is not what it began with."""
    model, data = Rows().double(), [(torch.tensor(row % 6), torch.tensor(row % 3)) for row in range(12)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with Recording(tmp_path, model, optimizer, every=2) as recording:
        for number, (x, y) in enumerate(recording.loader(DataLoader(data, 1))):  # type: ignore[arg-type]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if number == 2:
                model.rows.weight.data[5] = 1.0
    link = Unrolled(recording=tmp_path)
    stage = Stage("only", model=model, objective=Classification(), data=data, link=link)
    with pytest.raises(DataError, match=r"parameters were changed outside|outside optimizer\.step\(\)"):
        trace(Chain(stage), Query(data[:3]))


def session(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel) -> None:
    with Recording(folder, model, optimizer, average=average) as recording:
        for x, y in recording.loader(DataLoader(DATA, 4)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            average.update_parameters(model)


def test_a_session_may_thaw_what_the_one_before_it_froze(tmp_path: Path):
    model = plain()
    model[0].requires_grad_(False)
    optimizer, average = torch.optim.SGD(model.parameters(), lr=0.1), AveragedModel(model)
    session(tmp_path / "1", model, optimizer, average)
    model[0].requires_grad_(True)
    session(tmp_path / "2", model, optimizer, average)
    average.module.requires_grad_(True)  # the copy was made when the layer was frozen
    link = Unrolled(recording=[tmp_path / "1", tmp_path / "2"])
    stage = Stage("only", model=average.module.eval(), objective=Classification(), data=DATA, link=link)
    assert bool(trace(Chain(stage), Query(QUERIES))["only"].values.any())


def test_an_average_that_was_begun_anew_is_named(tmp_path: Path):
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session(tmp_path / "1", model, optimizer, AveragedModel(model))
    session(tmp_path / "2", model, optimizer, AveragedModel(model))
    with pytest.raises(
        DescriptionError, match=r"those of step 4, but the average of the parameters is not: .*begun anew"
    ):
        Unrolled(recording=[tmp_path / "1", tmp_path / "2"])
