"""Weights that are allowed, and the way along which the loss falls most."""

import pytest
import torch
from scipy.optimize import minimize

from stagetrace.reweighting.balance import along, length_of, predicted_change, projected


@pytest.mark.parametrize("n", [2, 5, 9])
def test_the_projection_is_the_nearest_of_the_allowed_weights(n: int):
    generator = torch.Generator().manual_seed(n)
    for _ in range(5):
        values = 3 * torch.randn(n, dtype=torch.float64, generator=generator)
        found = projected(values)
        nearest = minimize(  # pyright: ignore[reportUnknownVariableType]
            lambda w, v: ((w - v) ** 2).sum(),
            [1.0] * n,
            args=(values.numpy(),),
            jac=lambda w, v: 2 * (w - v),
            bounds=[(0, None)] * n,
            constraints={"type": "eq", "fun": lambda w, *_: w.sum() - n},
            tol=1e-14,
        )
        torch.testing.assert_close(found, torch.tensor(nearest.x), rtol=0, atol=1e-6)
        assert float(found.min()) >= 0
        assert float(found.mean()) == pytest.approx(1, abs=1e-12)


def drawn(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "a": projected(torch.rand(6, dtype=torch.float64, generator=generator) * 3),
        "b": projected(torch.rand(4, dtype=torch.float64, generator=generator) * 3),
    }


def test_along_the_way_nothing_of_the_same_length_is_predicted_to_do_better():
    """The best answer to a linear model within a ball: no other allowed weights are better."""
    generator = torch.Generator().manual_seed(0)
    start = drawn(generator)
    slopes = {stage: torch.randn(len(each), dtype=torch.float64, generator=generator) for stage, each in start.items()}
    for length in (0.05, 0.3, 0.8):
        found = along(start, slopes, length)
        assert length_of(start, found) == pytest.approx(length, rel=1e-9)
        best = predicted_change(start, found, slopes)
        assert best < 0
        for _ in range(300):
            other = drawn(generator)
            share = min(1.0, length / length_of(start, other))  # on the line to it, as far as allowed
            nearer = {stage: each + share * (other[stage] - each) for stage, each in start.items()}
            assert predicted_change(start, nearer, slopes) >= best - 1e-12


def test_the_way_ends_where_all_weight_is_on_the_best_example():
    start = {"a": torch.ones(3, dtype=torch.float64)}
    found = along(start, {"a": torch.tensor([1.0, -1.0, 0.5]).double()}, 10.0)
    torch.testing.assert_close(found["a"], torch.tensor([0.0, 3.0, 0.0]).double())


def test_where_no_balance_matters_nothing_moves():
    start = {"a": torch.ones(3, dtype=torch.float64)}
    assert along(start, {"a": torch.full((3,), 2.0).double()}, 0.5) is start
