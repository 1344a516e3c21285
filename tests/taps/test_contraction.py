"""Contractions and whole gradients of losses from taps against plain autograd, one example at a time."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Stage
from stagetrace.errors import DifferentiationError
from stagetrace.objectives import Classification
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.risk import Risk
from stagetrace.taps import Contraction, gradient_rows, products, tap, uncovered
from stagetrace.taps.kinds import Convolution
from stagetrace.tracing import room
from stagetrace.tracing.score import Scorer
from tests.taps.test_gradients import CASES, PICTURES, N, risk_of

REFUSED = {
    "tied by a function": "'table.weight' is not tapped: used outside table",
    "weight norm": "' is not tapped: ",
    "time first": "the output of 'first' does not have the examples first",
    "one list": "the output of 'first' does not have the examples first",
    "experts": "the output of 'experts.0' does not have the examples first",
}


def one_by_one(risk: Risk) -> Tensor:
    """`[N, P]` by plain autograd."""
    return torch.cat([batch_gradient(risk, single).trained for single in risk.read([[i] for i in range(N)])], 1).mT


@pytest.mark.parametrize("columns", [1, 2, 40])  # a side at a time; both orders; the gradient first
@pytest.mark.parametrize("case", sorted(set(CASES) - set(REFUSED)))
def test_contractions_are_those_of_autograd(case: str, columns: int) -> None:
    risk = risk_of(*CASES[case])
    tapped, expected = tap(risk), one_by_one(risk)
    batch = next(iter(risk.read([range(N)])))
    vectors = torch.randn(risk.trained.size, columns, generator=torch.Generator().manual_seed(3)).double()
    losses, dots = Contraction(tapped, vectors)(batch)
    torch.testing.assert_close(dots, expected @ vectors, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        plain = risk.losses(risk.trained_values, risk.inherited_values, batch)
    torch.testing.assert_close(losses, plain)
    assert not dots.requires_grad
    assert not losses.requires_grad
    _, rows = gradient_rows(tapped, batch)
    torch.testing.assert_close(rows, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", REFUSED)
def test_what_taps_do_not_cover_is_refused(case: str) -> None:
    tapped = tap(risk_of(*CASES[case]))
    assert REFUSED[case] in (uncovered(tapped) or "")
    with pytest.raises(DifferentiationError, match="no gradients layer by layer: "):
        Contraction(tapped, tapped.risk.trained.zeros(1))


def test_the_order_of_products_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in ("convolution", "tied table", "twice"):
        risk = risk_of(*CASES[case])
        tapped, batch = tap(risk), next(iter(risk.read([range(N)])))
        vectors = torch.randn(risk.trained.size, 3).double()
        expected = Contraction(tapped, vectors)(batch)[1]
        monkeypatch.setattr(products, "BYTES", 1)  # an example at a time
        torch.testing.assert_close(Contraction(tapped, vectors)(batch)[1], expected)
        monkeypatch.undo()


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": (2, 1), "dilation": (1, 2)}], ids=str)
def test_convolutions_are_read_off_with_the_channels_last(settings: dict[str, Any]) -> None:
    layer, given = nn.Conv2d(5, 3, (2, 3), **settings), torch.randn(4, 5, 7, 6)
    rows, last = Convolution().rows(layer, given), Convolution.channels_last(layer, given)
    assert last is not None
    assert torch.equal(last.unflatten(2, (6, 5)).transpose(2, 3).flatten(2), rows)
    assert Convolution.channels_last(nn.Conv2d(1, 3, 3), torch.randn(4, 1, 9, 9)) is None  # rows are as long
    one = one_by_one(risk_of(lambda: wide_convolution(settings), PICTURES))
    risk = risk_of(lambda: wide_convolution(settings), PICTURES)
    vectors = torch.randn(risk.trained.size, 12, generator=torch.Generator().manual_seed(3)).double()
    dots = Contraction(tap(risk), vectors)(next(iter(risk.read([range(N)]))))[1]
    torch.testing.assert_close(dots, one @ vectors, rtol=1e-9, atol=1e-10)


def wide_convolution(settings: dict[str, Any]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 1), nn.Tanh(), nn.Conv2d(6, 3, 2, **settings), nn.Flatten(), nn.LazyLinear(2))


def scored(risk: Risk, columns: int) -> tuple[Scorer, Tensor]:
    vectors = torch.randn(risk.trained.size, columns, generator=torch.Generator().manual_seed(3)).to(risk.trained.dtype)
    scorer = Scorer.of(risk, vectors, parts=False, rows=columns)
    return scorer, scorer.part(range(len(risk.examples)), lambda *_: None).values


def wide(inputs: int = 6) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Unflatten(1, (1, inputs)), nn.Conv1d(1, 3, 3), nn.AvgPool1d(4), nn.Flatten())


def risk_with(make: Callable[[], nn.Module], x: Tensor, **stage: Any) -> Risk:
    torch.manual_seed(2)
    data = TensorDataset(x, torch.arange(len(x)) % 3)
    return BoundStage.of(Stage("only", model=make(), objective=Classification(), data=data, **stage), None).risk


def test_batches_whose_graph_does_not_fit_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    risk = risk_with(wide(), torch.randn(11, 6, generator=torch.Generator().manual_seed(1)))
    scorer, expected = scored(risk, 50)
    assert scorer.way == "layer by layer"
    assert scorer.at_once >= 11
    monkeypatch.setattr(room, "ROOM", 1)
    scorer, found = scored(risk, 50)
    assert scorer.at_once == 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_layer_that_a_probe_finds_wrong_is_not_used() -> None:
    class Leaking(nn.Linear):
        """Multiplies its output by what its input says of all examples, unseen from outside."""

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * (1 + input.detach().sum().abs())

    risk = risk_with(lambda: nn.Sequential(Leaking(6, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(9, 6))
    scorer, _ = scored(risk, 50)
    assert scorer.way == "per-example gradients"
    assert scorer.why.startswith("not layer by layer: ")


@pytest.mark.slow
def test_no_compiler_is_imported() -> None:
    code = (
        "import sys, torch\n"
        "from tests.taps.test_contraction import *\n"
        "risk = risk_of(*CASES['convolution'])\n"
        "batch = next(iter(risk.read([range(N)])))\n"
        "Contraction(tap(risk), risk.trained.zeros(2))(batch)\n"
        "print([name for name in ('sympy', 'torch._dynamo') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
