"""A loop that is recorded may copy and save its model: what watches the training stays behind."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stagetrace import Chain, Query, Recording, Stage, Unrolled, trace
from stagetrace.objectives import Classification
from tests.replay.runs import Net, data_of

DATA: Any = data_of(11, 3, seed=1)
BEST = 2
"""The step after which the loop keeps its model."""


def trained(folder: Path, *, copies: bool) -> tuple[Net, Net | None]:
    """The model at the end, and the one that the loop kept on the way."""
    torch.manual_seed(0)
    model, best = Net(3, 0.0).double(), None
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with Recording(folder / "recording", model, optimizer, every=1) as recording:
        for number, (x, y) in enumerate(recording.loader(DataLoader(DATA, 4, shuffle=True))):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if copies and number + 1 == BEST:
                best = copy.deepcopy(model)
                F.cross_entropy(best(x), y).backward()  # no step: nobody looks at it
                torch.save(model, folder / "model.pt")
    return model, best


def scores(model: nn.Module, folder: Path) -> Tensor:
    link = Unrolled(recording=folder / "recording")
    stage = Stage("only", model=model.eval(), objective=Classification(), data=DATA, link=link)
    return trace(Chain(stage), Query(DATA[:2]))["only"].values


def test_a_copy_is_a_plain_model_and_may_be_traced(tmp_path: Path):
    plain, _ = trained(tmp_path / "plain", copies=False)
    model, best = trained(tmp_path / "copied", copies=True)
    assert best is not None
    saved: Any = torch.load(tmp_path / "copied" / "model.pt", weights_only=False)
    x = torch.stack([row[0] for row in DATA])
    with torch.no_grad():
        assert torch.equal(saved.eval()(x), best.eval()(x))
    assert b"stagetrace" not in (tmp_path / "copied" / "model.pt").read_bytes()
    assert torch.equal(plain.head.weight, model.head.weight)
    values = scores(best, tmp_path / "copied")
    assert bool(values.any())
    assert not torch.equal(values, scores(model, tmp_path / "copied"))


def test_an_average_may_be_made_within_the_recording(tmp_path: Path):
    model = Net(3, 0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(tmp_path / "recording", model, optimizer) as recording:
        average = torch.optim.swa_utils.AveragedModel(model)
        for x, y in recording.loader(DataLoader(DATA, 4)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            average.update_parameters(model)
    assert bool(scores(model, tmp_path).any())
