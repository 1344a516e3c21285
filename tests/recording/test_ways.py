"""Beside the plain loop: closures, recomputed activations, compiled models, budgets; and what is refused."""

import json
import logging
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from stagetrace import Chain, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Classification
from stagetrace.recording import Recorded, writer
from stagetrace.recording.refused import check_model
from stagetrace.recording.spacing import Spacing
from tests.replay.runs import Net, data_of

DATA: Any = data_of(11, 3, seed=1)


class Recomputed(Net):
    """In training its body's activations are computed once more in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return self.head(checkpoint(self.body, x.requires_grad_(), use_reentrant=self.reentrant))


class Reentrant(Recomputed):
    reentrant = True


def trained(
    folder: Path | None, kind: type[Net] = Net, *, closure: bool = False, epochs: int = 2, **settings: Any
) -> Net:
    torch.manual_seed(0)
    model = kind(3, 0.2).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    loader = DataLoader(DATA, 4, shuffle=True)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        return loss

    def loop(batches: Any) -> None:
        for _ in range(epochs):
            for x, y in batches:
                if not closure:
                    step(x, y)
                optimizer.step(partial(step, x, y) if closure else None)

    if folder is None:
        loop(loader)
    else:
        with Recording(folder, model, optimizer, **settings) as recording:
            loop(recording.loader(loader))
    return model.eval()


def scores(model: Net, folder: Path) -> tuple[Tensor, float]:
    stage = Stage("only", model=model, objective=Classification(), data=DATA, link=Unrolled(recording=folder))
    found = trace(Chain(stage), Query(DATA[:2]))
    return found["only"].values, found.solutions["only"].relative_residuals[0]


def test_a_closure_is_read_when_it_has_run(tmp_path: Path):
    plain = trained(tmp_path / "plain")
    closed = trained(tmp_path / "closed", closure=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), closed.parameters(), strict=True))
    values, off = scores(closed, tmp_path / "closed")
    assert off < 1e-12
    assert torch.equal(values, scores(plain, tmp_path / "plain")[0])


@pytest.mark.parametrize("kind", [Recomputed, Reentrant])
def test_activations_computed_twice_are_kept_in_the_replay(kind: type[Net], tmp_path: Path):
    plain, twice = trained(tmp_path / "plain"), trained(tmp_path / "twice", kind)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), twice.parameters(), strict=True))
    values, off = scores(twice, tmp_path / "twice")
    assert off < 1e-12
    assert torch.allclose(values, scores(plain, tmp_path / "plain")[0], rtol=1e-10)


def test_a_budget_keeps_every_other_state_when_full(tmp_path: Path):
    trained(tmp_path / "all", epochs=12)  # 36 steps: states 0, 1, 4, 9, 16, 25, 36
    one = max(file.stat().st_size for file in (tmp_path / "all" / "states").iterdir())
    model = trained(tmp_path / "some", epochs=12, every=f"{4.5 * one / 1000} kB")
    found = Recorded.load(tmp_path / "some")
    assert found.states == (0, 4, 16, 36)
    files = {file.name for file in (tmp_path / "some" / "states").iterdir()}
    assert files == {f"step-{step:08d}.safetensors" for step in found.states}
    values, off = scores(model, tmp_path / "some")
    assert off < 1e-12
    assert torch.allclose(values, scores(model, tmp_path / "all")[0], rtol=1e-9)


def test_a_budget_below_two_states_is_refused_at_the_first_batch(tmp_path: Path):
    with pytest.raises(DescriptionError, match=r"every='1 kB' is less than the two states .* allow [0-9.]+ kB or more"):
        trained(tmp_path, every="1 kB")


@pytest.mark.parametrize("every", ["200", "MB", "0 MB", "200 cats", 0, True, -1])
def test_other_budgets_are_refused(every: Any):
    with pytest.raises(DescriptionError, match="'auto' or a budget such as '200 MB', got"):
        Spacing(every)


def test_size_and_time_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "stagetrace"):
        trained(tmp_path)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "stagetrace"]
    assert "kB a step" in said
    assert "a pass of 3 batches" in said
    seconds = json.loads((tmp_path / "recording.json").read_text())["seconds"]
    assert 0 < seconds["recording"] < seconds["training"]


def half_trained(folder: Path, optimizer: Any, model: Net, step: Any) -> None:
    with Recording(folder, model, optimizer) as recording:
        for x, y in recording.loader(DataLoader(DATA, 4)):
            step(F.cross_entropy(model(x), y))


def test_a_scaler_is_refused(tmp_path: Path):
    model = Net(3, 0.0).double()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    before = torch.amp.GradScaler.scale
    with pytest.raises(DescriptionError, match=r"GradScaler multiplies losses .* Train in bfloat16"):
        half_trained(tmp_path, optimizer, model, lambda loss: scaler.scale(loss))
    assert torch.amp.GradScaler.scale is before


def test_a_second_optimizer_is_refused(tmp_path: Path):
    model = Net(3, 0.0).double()
    body = torch.optim.SGD(model.body.parameters(), lr=0.1)
    head = torch.optim.Adam(model.head.parameters(), lr=0.1)
    with pytest.raises(DescriptionError, match=r"Adam stepped on the model too.*a parameter group for each rate"):
        half_trained(tmp_path, body, model, lambda loss: (loss.backward(), head.step()))


def test_a_compiled_model_is_refused_with_dropout_alone(monkeypatch: pytest.MonkeyPatch):
    class OptimizedModule(nn.Sequential):
        """By its name, which is what is looked at: compiling takes its time."""

    with pytest.raises(DescriptionError, match=r"compiled and has dropout.*fallback_random = True"):
        check_model(OptimizedModule(Net(3, 0.2)))
    check_model(OptimizedModule(Net(3, 0.0)))
    check_model(Net(3, 0.2))
    monkeypatch.setitem(sys.modules, "torch._inductor.config", SimpleNamespace(fallback_random=True))
    check_model(OptimizedModule(Net(3, 0.2)))


def test_models_in_pieces_and_averages_are_refused():
    class DistributedDataParallel(nn.Module):
        """By its name, which is what is looked at: there is one process here."""

    with pytest.raises(DescriptionError, match=r"data parallelism over several processes.*in one process"):
        check_model(DistributedDataParallel())
    with pytest.raises(DescriptionError, match=r"averaged weights \(AveragedModel\)"):
        check_model(torch.optim.swa_utils.AveragedModel(Net(3, 0.0)))


def test_averaged_weights_are_no_state_of_the_training(tmp_path: Path):
    torch.manual_seed(0)
    model = Net(3, 0.0).double()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(tmp_path, model, optimizer) as recording:
        for x, y in recording.loader(DataLoader(DATA, 4)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            average.update_parameters(model)
    with pytest.raises(DescriptionError, match=r"averaged weights \(EMA, SWA\) if they were recorded"):
        scores(cast(Net, average.module.eval()), tmp_path)


def test_what_was_recorded_before_a_kill_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(self: writer.Writer, last: Any) -> None:
        self.wait()  # what had been handed over was written, some seconds before
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_PAUSE", 0.0)
    monkeypatch.setattr(writer.Writer, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, every=2)
    found = Recorded.load(tmp_path)
    assert found.states == (0, 2, 4)  # of six steps
    assert sum(len(found.read(block)) for block in found.blocks) == 4
