"""The verdict on a stage's data as a whole, against solving again; shares and percentiles against counting."""

import math

import pytest
import torch
from torch import Tensor

from stagetrace.report.transfer import Transfer, concentration, percentiles


def ridge(x: Tensor, y: Tensor, decay: float, weight: float = 1.0) -> float:
    """The minimum of `weight * mean (w x - y)^2 + decay w^2`."""
    return float(weight * (x * y).mean() / (weight * (x * x).mean() + decay))


def query(w: float) -> float:
    return (2.0 * w - 1.0) ** 2


def influence(x: Tensor, y: Tensor, decay: float) -> Tensor:
    """d(query loss)/d(epsilon) of each example: `-gradient_i * d(query)/dw / curvature`."""
    w = ridge(x, y, decay)
    curvature = 2 * float((x * x).mean()) + 2 * decay
    return -(2 * (w * x - y) * x) * 4 * (2 * w - 1) / curvature


@pytest.mark.parametrize(("slope", "verdict"), [(0.45, "helps"), (5.0, "harms")])
def test_the_mean_score_is_the_derivative_in_the_weight_of_all_the_data(slope: float, verdict: str):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(400, generator=generator, dtype=torch.float64) + 0.5
    y = slope * x + 0.02 * torch.randn(400, generator=generator, dtype=torch.float64)
    step = 1e-5
    up, down = (query(ridge(x, y, 0.3, 1 + sign * step)) for sign in (1, -1))
    found = Transfer.of(influence(x, y, 0.3))
    assert found.mean == pytest.approx((up - down) / (2 * step), rel=1e-6)
    assert found.verdict == verdict
    assert found.low < found.mean < found.high


def test_without_a_penalty_nothing_can_be_told():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    found = Transfer.of(influence(x, y, 0.0))
    assert abs(found.mean) < 1e-12
    assert found.verdict == "cannot be told"


def test_the_interval_covers_the_mean_of_the_population_as_often_as_it_says():
    drawn = torch.randn(2_000, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    covered = [(found := Transfer.of(sample)).low <= 0.3 <= found.high for sample in drawn]
    assert 0.935 < sum(covered) / len(covered) < 0.96


def test_one_example_tells_nothing():
    found = Transfer.of(torch.tensor([5.0]).double())
    assert (found.verdict, found.low, found.high) == ("cannot be told", -math.inf, math.inf)


def test_the_share_of_the_largest_effects_and_percentiles_agree_with_counting():
    scores = torch.randint(-20, 20, (250,), generator=torch.Generator().manual_seed(0)).double()
    sizes = sorted((abs(value) for value in scores.tolist()), reverse=True)
    assert concentration(scores) == pytest.approx(sum(sizes[:3]) / sum(sizes))  # 1 % of 250, rounded up
    assert concentration(torch.zeros(4).double()) == 0
    places = torch.tensor([0, 7, 249])
    values = scores.tolist()
    counted = [
        100 * sum((other < values[i]) + 0.5 * (other == values[i]) for other in values) / 250 for i in places.tolist()
    ]
    assert percentiles(scores, places).tolist() == pytest.approx(counted)
