"""Batches whose loss was 0: what they were divided by follows from the others, and counts once weights move them."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stagetrace import Chain, Recording, Stage, Unrolled
from stagetrace.errors import StagetraceWarning
from stagetrace.progress import Silent
from stagetrace.replay.course import Course
from stagetrace.reweighting.repeat import Repeat

N, BATCH = 23, 3
X = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
DATA: Any = list(zip(X, (X[:, 0] > 0).long() * 2 - 1, strict=True))


def hinge(model: nn.Module, batch: Any) -> Tensor:
    x, y, *_ = batch
    return (1 - y * model(x)[:, 0]).clamp(min=0)


def divisor(how: str, number: int, n: int) -> float:
    return {"sum": 1.0, "mean": float(n), "mean of four": 4.0 * n, "various": float(1 + number % 5)}[how]


def train(how: str, weights: Tensor, folder: Path | None = None) -> tuple[nn.Module, list[float]]:
    """The model, and the factors of the batches; most lose nothing in the end."""
    torch.manual_seed(1)
    model, factors = nn.Linear(4, 1).double(), list[float]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0 if "four" in how else 0.5)
    rows: Any = DATA if folder else [(*row, index) for index, row in enumerate(DATA)]
    loader: Any = DataLoader(rows, BATCH, shuffle=True, generator=torch.Generator().manual_seed(2))
    recording = Recording(folder, model, optimizer) if folder else None
    zero = 0
    with recording or nullcontext():
        for _ in range(8):
            for batch in recording.loader(loader) if recording else loader:
                losses = hinge(model, batch)
                divided = divisor(how, len(factors), len(losses))
                loss = (losses if recording else losses * weights[batch[2]]).sum() / divided
                zero += float(loss.detach()) == 0
                factors.append(1 / divided)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    assert zero > 2
    return model.eval(), factors


def chain(how: str, folder: Path) -> tuple[Chain, list[float]]:
    model, factors = train(how, torch.ones(N), folder)
    return Chain(Stage("only", model=model, objective=hinge, data=DATA, link=Unrolled(recording=folder))), factors


@pytest.mark.parametrize("how", ["sum", "mean", "mean of four"])
def test_a_repeated_training_divides_as_the_recorded_one(how: str, tmp_path: Path):
    recorded, factors = chain(how, tmp_path / "recording")
    repeat = Repeat.of("recorded order", recorded, "only")
    found = [factor for step in repeat.courses["only"].factors for factor in step]
    assert found == pytest.approx(factors)
    weights = torch.full((N,), 1.5, dtype=torch.float64)
    weights[: N // 3] = 0
    ended = repeat.train({"only": weights}, tmp_path / "run", Silent()).chain["only"].stage.model
    expected, _ = train(how, weights)
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(ended.parameters(), expected.parameters(), strict=True))


def test_where_it_cannot_be_told_that_is_said(tmp_path: Path):
    recorded, _ = chain("various", tmp_path)
    bound = recorded["only"]
    with pytest.warns(StagetraceWarning, match=r"batches were 0, so that what they were divided by cannot be told"):
        Course.of(bound, bound.recording)
