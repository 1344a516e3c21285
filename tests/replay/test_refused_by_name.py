"""Recorded trainings whose losses have no derivative here, or that are described otherwise: named, and refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stagetrace import Chain, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import Classification
from tests.replay.runs import Net, data_of

DATA: Any = data_of(12, 3, seed=1)
TESTS = data_of(3, 3, seed=2)


def trained(folder: Path, loss: Callable[[nn.Module, Tensor, Tensor], Tensor], **settings: Any) -> Stage:
    """One stage trained on a loss of its own, described by the plain one."""
    torch.manual_seed(3)
    model = Net(3, 0.0).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, **settings)
    with Recording(folder, model, optimizer) as recording:
        for x, y in recording.loader(DataLoader(DATA, 2)):
            optimizer.zero_grad()
            loss(model, x, y).backward()
            optimizer.step()
    link = Unrolled(recording=folder)
    return Stage("a", model=model.eval(), objective=Classification(), data=DATA, link=link)


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def by_itself(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = plain(model, x, y)
    return loss / loss.detach()


def with_penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return plain(model, x, y) + 0.03 * sum(p.square().sum() for p in model.parameters())


def with_penalty_on_matrices(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return plain(model, x, y) + 0.03 * sum(p.square().sum() for p in model.parameters() if p.ndim > 1)


def with_another_term(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return plain(model, x, y) + 0.03 * model(x).square().mean()


def test_a_loss_divided_by_itself_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"every loss that went backward was 1, .* \(loss / loss.detach\(\)\)"):
        trace(Chain(trained(tmp_path, by_itself)), Query(TESTS))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (with_penalty, r"0\.03 times the sum of the squared parameters: an L2 penalty.*weight_decay=0\.06"),
        (with_penalty_on_matrices, r"0\.03 times the sum of the squared parameters in matrices: an L2 penalty"),
    ],
)
def test_a_penalty_written_into_the_loss_is_named(loss: Any, said: str, tmp_path: Path):
    with pytest.raises(DataError, match=said):
        trace(Chain(trained(tmp_path, loss)), Query(TESTS))


def test_another_term_is_not_taken_for_a_penalty(tmp_path: Path):
    with pytest.raises(DataError, match=r"no whole multiple .* Other likely causes: .*a further term") as caught:
        trace(Chain(trained(tmp_path, with_another_term)), Query(TESTS))
    assert "L2" not in str(caught.value)


def test_the_penalty_in_the_optimiser_is_followed(tmp_path: Path):
    """What the message says to type instead."""
    stage = trained(tmp_path, plain, weight_decay=0.06)
    assert trace(Chain(stage), Query(TESTS)).solutions["a"].relative_residual < 1e-10


def test_a_weight_decay_beside_recorded_steps_is_refused(tmp_path: Path):
    stage = replace(trained(tmp_path, plain), weight_decay=0.01)
    with pytest.raises(DescriptionError, match=r"weight_decay=0.01 .* leave weight_decay= out"):
        trace(Chain(stage), Query(TESTS))


def test_a_compiled_model_is_known_by_the_names_of_the_plain_one(tmp_path: Path):
    stage = trained(tmp_path, plain)
    compiled: Any = torch.compile(stage.model, backend="eager")
    expected = trace(Chain(stage), Query(TESTS))["a"].values
    assert torch.equal(trace(Chain(replace(stage, model=compiled)), Query(TESTS))["a"].values, expected)


@pytest.mark.parametrize("points", [2, 3, 4])
def test_scores_do_not_depend_on_the_memory(points: int, tmp_path: Path):
    stage = trained(tmp_path, plain)
    size = 3 * 8 * sum(p.numel() for p in stage.model.parameters())
    expected = trace(Chain(stage), Query(TESTS))["a"].values
    link = Unrolled(recording=tmp_path, memory=points * size)
    torch.testing.assert_close(trace(Chain(replace(stage, link=link)), Query(TESTS))["a"].values, expected)
