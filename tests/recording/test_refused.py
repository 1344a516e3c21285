"""Trainings that would not replay are refused by name, and none of those that would."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from stagetrace import Recording
from stagetrace.errors import DescriptionError
from stagetrace.recording import Recorded
from stagetrace.recording.refused import check_model, drops_out, is_compiled, refuse_compiled
from tests.replay.runs import Net, data_of

DATA: Any = data_of(4, 3, seed=1)
SPREAD = {
    "DistributedDataParallel": "data parallelism over several processes",
    "DataParallel": "data parallelism over several devices",
    "FullyShardedDataParallel": "FSDP",
    "FSDPModule": "FSDP",
    "DeepSpeedEngine": "DeepSpeed",
}


def configured(**settings: float) -> nn.Module:
    """A model that calls dropout by itself, as its configuration says."""
    model = nn.Linear(1, 1)
    model.config = SimpleNamespace(**settings)  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("kind", SPREAD)
@pytest.mark.parametrize("inside", [False, True])
def test_models_in_pieces(kind: str, inside: bool):
    wrapped = type(kind, (nn.Linear,), {})(1, 1)
    with pytest.raises(DescriptionError, match=rf"{SPREAD[kind]} \({kind}\).*record a training in one process"):
        check_model(nn.Sequential(wrapped) if inside else wrapped)


def test_models_of_a_subclass_too():
    parent = type("FullyShardedDataParallel", (nn.Linear,), {})
    with pytest.raises(DescriptionError, match="FSDP"):
        check_model(type("Mine", (parent,), {})(1, 1))


@pytest.mark.parametrize(
    ("model", "drops"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.Sequential(nn.Dropout2d(0.1)), True),
        (nn.LSTM(1, 1, num_layers=2, dropout=0.1), True),
        (nn.LSTM(1, 1, num_layers=2), False),
        (nn.MultiheadAttention(2, 1, dropout=0.1), True),
        (nn.MultiheadAttention(2, 1), False),
        *((configured(**{name: 0.1}), True) for name in ("attention_dropout", "attention_probs_dropout_prob")),
        *(
            (configured(**{name: 0.1}), True)
            for name in ("hidden_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop")
        ),
        (configured(attention_dropout=0.0), False),
        (configured(other=0.1), False),
    ],
)
def test_what_drops_at_random(model: nn.Module, drops: bool):
    assert drops_out(model) is drops


def test_compiled_in_place():
    model = nn.Sequential(nn.Dropout(0.1))
    assert not is_compiled(model)
    model._compiled_call_impl = object()  # type: ignore[assignment]  # as `model.compile()` leaves it
    assert is_compiled(model)
    assert is_compiled(model, inside=True)
    with pytest.raises(DescriptionError, match=r"compiled and has dropout"):
        refuse_compiled(model)
    with pytest.raises(DescriptionError, match=r"compiled and has dropout"):
        check_model(nn.Sequential(model))
    assert not is_compiled(type("OptimizedModule", (nn.Linear,), {})(1, 1), inside=True)


def recorded(folder: Path, step: Callable[[Net, torch.optim.Optimizer, Any], None]) -> Recorded:
    model = Net(3, 0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(folder, model, optimizer) as recording:
        for x, y in recording.loader(DataLoader(DATA, 2)):
            optimizer.zero_grad()
            step(model, optimizer, nn.functional.cross_entropy(model(x), y))
    return Recorded.load(folder)


def test_a_scaler_that_is_off_scales_nothing(tmp_path: Path):
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def step(model: Net, optimizer: torch.optim.Optimizer, loss: Any) -> None:
        del model
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    assert recorded(tmp_path, step).steps == 2


def test_another_model_may_have_an_optimiser_of_its_own(tmp_path: Path):
    other = nn.Linear(1, 1)
    its = torch.optim.SGD(other.parameters(), lr=0.1)

    def step(model: Net, optimizer: torch.optim.Optimizer, loss: Any) -> None:
        del model
        loss.backward()
        optimizer.step()
        other(torch.ones(1)).sum().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        its.step()

    found = recorded(tmp_path, step)
    assert found.steps == 2
    assert not any(step.clips for block in found.blocks for step in found.read(block))


@pytest.mark.parametrize("kind", [1.0, float("inf")])
def test_clipping_by_another_norm_is_refused_at_the_step_that_does_it(kind: float, tmp_path: Path):
    def step(model: Net, optimizer: torch.optim.Optimizer, loss: Any) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=kind)
        optimizer.step()

    with pytest.raises(
        DescriptionError, match=r"clip_grad_norm_\(norm_type=.*\) has no derivative here; .*norm_type=2"
    ):
        recorded(tmp_path, step)


def test_a_sparse_gradient_is_refused_at_the_step_that_has_it(tmp_path: Path):
    model = nn.Embedding(4, 3, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(tmp_path, model, optimizer) as recording, recording.batch([0], torch.tensor([1])):
        model(torch.tensor([1])).sum().backward()
        with pytest.raises(DescriptionError, match=r"the gradient of 'weight' is sparse .*sparse=False"):
            optimizer.step()


def test_a_rate_that_is_coarser_than_the_parameters_is_refused(tmp_path: Path):
    model = nn.Linear(2, 1).double()
    with pytest.raises(DescriptionError, match=r"lr is a tensor of torch\.float32, .*give a number, lr=0\.01"):
        Recording(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01)))
    Recording(tmp_path, model, torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01).double()))
    Recording(tmp_path, model.float(), torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01)))
