"""Running statistics: a shared state without a gradient, named, and looked at."""

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Frozen, GaussNewton, Link, Proximal, Query, Stage, trace
from stagetrace.errors import StagetraceWarning
from stagetrace.objectives import Classification
from stagetrace.preflight import Level, inspect
from stagetrace.progress import Silent
from stagetrace.solvers import Lanczos
from stagetrace.stages.coverage import Coverage, notices_at

DATA = TensorDataset(torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1] * 4))
SOLVER, CURVATURE = Lanczos(damping=1.0, max_steps=5), GaussNewton()
MOVED = (
    r"stage 'after': the running statistics \(buffers\) of 'body.1' changed although the weights there did not; scores "
    r"treat them as constants. To keep them fixed, call eval\(\) on the frozen layers while fine-tuning, after "
    r"model.train\(\)"
)


class Net(nn.Module):
    """Two batch norms in the body: one with weights, one that is nothing but its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False))
        self.head = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def chain_of(link: Link, *moved: str) -> Chain:
    """Two stages with the same values, but for the running means of the named layers."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        before = Net().eval()
    after = copy.deepcopy(before)
    for name in moved:
        after.get_submodule(name).get_buffer("running_mean").add_(0.5)
    described: dict[str, Any] = {"objective": Classification(), "data": DATA}
    return Chain(Stage("before", model=before, **described), Stage("after", model=after, link=link, **described))


SHARED = tuple(f"body.{layer}.running_{what}" for layer in (1, 2) for what in ("mean", "var"))
LINKS: dict[str, Link] = {
    "by a prefix": Frozen("body"),
    "by parameters": Frozen(["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]),
    "trained further": Proximal("body", alpha=1.0),
}


@pytest.mark.parametrize("name", LINKS)
def test_buffers_beside_shared_parameters_are_named(name: str):
    chain = chain_of(LINKS[name], "body.1", "head.1")
    expected = SHARED if name != "by parameters" else SHARED[:2]  # a layer without parameters is under no name
    found = Coverage.of(chain.last)
    assert found.shared_buffers == expected
    assert found.moved_buffers == (() if name == "trained further" else ("body.1.running_mean",))
    assert Coverage.of(chain.bound_stages[0]).shared_buffers == ()


@pytest.mark.parametrize(
    ("link", "moved", "said"),
    [
        ("by a prefix", ("body.1",), True),
        ("by parameters", ("body.1",), True),
        ("by a prefix", ("head.1",), False),
        ("by a prefix", (), False),
        ("trained further", ("body.1",), False),
    ],
)
def test_statistics_that_moved_beside_kept_weights_are_said(link: str, moved: tuple[str, ...], said: bool):
    found = notices_at(chain_of(LINKS[link], *moved).last)
    assert len(found) == said
    for notice in found:
        assert re.fullmatch(MOVED, notice), notice


def test_a_layer_of_nothing_but_statistics_is_found_by_its_prefix():
    (notice,) = notices_at(chain_of(Frozen("body"), "body.2").last)
    assert "of 'body.2' changed" in notice


def test_a_trace_warns_and_records_it(tmp_path: Path):
    chain = chain_of(Frozen("body"), "body.1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace(chain, Query(DATA), curvature=CURVATURE, solver=SOLVER, out=tmp_path / "run")
    assert [w for w in caught if issubclass(w.category, StagetraceWarning) and "'body.1' changed" in str(w.message)]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    coverage = record["statistics"]["coverage"]["after"]
    assert coverage["shared_buffers"] == list(SHARED)
    assert coverage["moved_buffers"] == ["body.1.running_mean"]
    assert any("'body.1' changed" in notice for notice in record["statistics"]["notices"])


def test_a_check_names_them():
    chain = chain_of(Frozen("body"), "body.1")
    curvature, solver = dict.fromkeys(chain.names, CURVATURE), dict.fromkeys(chain.names, SOLVER)
    findings = list(inspect(chain, Query(DATA), curvature, solver, Silent()))
    (coverage,) = (f for f in findings if (f.where, f.what) == ("after", "coverage"))
    assert "shared with the previous stage: body.1.running_mean, body.1.running_var, body.2.running_mean, ..." in (
        coverage.text
    )
    assert "changed" in coverage.text
    (warning,) = (f for f in findings if f.what == "statistics")
    assert warning.level == Level.WARNING
    assert "call eval() on the frozen layers" in warning.text
