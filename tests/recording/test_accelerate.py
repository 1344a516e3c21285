"""Loops with accelerate, whose prepared model, optimiser and loader are recorded as plain ones are."""

from pathlib import Path
from typing import Any, cast

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stagetrace import Chain, Query, Recording, Stage, Trace, Unrolled, trace
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Classification
from stagetrace.recording import Recorded
from tests.replay.runs import Net, data_of

DATA: Any = [(x.float(), y) for x, y in data_of(11, 3, seed=1)]
EPOCHS, STEPS = 2, 4  # three batches an epoch, two to a step, and the last one alone


@pytest.fixture(autouse=True)
def forget() -> None:
    """accelerate keeps its settings in classes."""
    forgotten()


def forgotten() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def trained(folder: Path | None, dtype: torch.dtype = torch.float32, precision: str = "no", **settings: Any) -> Net:
    torch.manual_seed(0)
    model, rows = Net(3, 0.2).to(dtype), cast(Any, [(x.to(dtype), y) for x, y in DATA])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 3)
    loader = DataLoader(rows, 4, shuffle=True)
    engine = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
    model, optimizer, loader, schedule = engine.prepare(model, optimizer, loader, schedule)
    if folder is None:
        loop(engine, model, optimizer, loader, schedule)
    else:
        with Recording(folder, model, optimizer, **settings) as recording:
            loop(engine, model, optimizer, recording.loader(loader), schedule)
    return model


def loop(engine: Any, model: Any, optimizer: Any, loader: Any, schedule: Any) -> None:
    for _ in range(EPOCHS):
        for x, y in loader:
            with engine.accumulate(model):
                loss = F.cross_entropy(model(x), y)
                engine.backward(loss)
                if engine.sync_gradients:
                    engine.clip_grad_norm_(model.parameters(), 0.3)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def traced(model: Net, folder: Path) -> Trace:
    rows = [(x.to(model.head.weight.dtype), y) for x, y in DATA]
    stage = Stage("only", model=model.eval(), objective=Classification(), data=rows, link=Unrolled(recording=folder))
    return trace(Chain(stage), Query(rows[:2]))


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({}, 1e-5), ({"dtype": torch.float64}, 1e-12), ({"precision": "bf16"}, 1e-4)],
)
def test_a_loop_trains_as_without_and_is_replayed(settings: dict[str, Any], allowed: float, tmp_path: Path):
    alone = trained(None, **settings)
    forgotten()
    watched = trained(tmp_path, **settings)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    recorded = Recorded.load(tmp_path)
    steps = [step for block in recorded.blocks for step in recorded.read(block)]
    assert [len(step.micros) for step in steps] == [2, 1, 2, 1]
    assert all(len(step.clips) == 1 for step in steps)
    precise = ("cpu", "bfloat16") if "precision" in settings else None
    assert {micro.autocast for step in steps for micro in step.micros} == {precise}
    found = traced(watched, tmp_path)
    assert found.solutions["only"].relative_residuals[0] < allowed
    assert bool((found["only"].values != 0).all())


def test_a_loader_that_hands_out_parts_is_refused(tmp_path: Path):
    model = Net(3, 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = accelerate.DataLoaderConfiguration(dispatch_batches=True)
    engine = accelerate.Accelerator(cpu=True, dataloader_config=settings)
    loader = engine.prepare(DataLoader(DATA, 4))
    with (
        Recording(tmp_path, model, optimizer) as recording,
        pytest.raises(DescriptionError, match="dispatch_batches=False"),
    ):
        recording.loader(loader)
