"""Reliability against simulations whose variances are known, and against SciPy."""

import json
import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagetrace.errors import DescriptionError
from stagetrace.validation import reliability
from stagetrace.validation.reliability import Reliability, mean_over_seeds

NAN = math.nan


def measured(seed: int, runs: int, n: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """A signal of variance 1, and each run's measurement of it: signal + noise."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n, generator=generator, dtype=torch.float64)
    return signal, signal + noise * torch.randn(runs, n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("runs", [2, 3, 4, 5, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (9, 12))])
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_finds_the_reliability_that_was_put_in(runs: int, noise: float):
    signal, effects = measured(100 + runs, runs, 20_000, noise)
    found = Reliability.of(effects)
    assert (found.runs, found.n) == (runs, 20_000)
    assert found.reliability == pytest.approx(1 / (1 + noise**2 / runs), abs=0.03)
    assert found.single == pytest.approx(1 / (1 + noise**2), abs=0.02)
    assert found.noise_floor == pytest.approx(noise / math.sqrt(runs), rel=0.02)
    assert found.ceiling == pytest.approx(np.corrcoef(signal, effects.mean(dim=0))[0, 1], abs=0.01)
    # Of normal values the rank correlation is a little lower: 6 / pi asin(r / 2).
    assert found.rank_reliability == pytest.approx(found.reliability, abs=0.04)


@pytest.mark.parametrize("runs", [2, 3, 4, 5, 6, 7])
def test_is_the_mean_over_every_split(runs: int):
    """All pairs of disjoint sets of runs // 2 runs, by SciPy, one at a time; each split counted twice."""
    _, effects = measured(runs, runs, 15)
    x, half = effects.numpy(), runs // 2
    splits = [
        (x[list(left)].mean(axis=0), x[list(right)].mean(axis=0))
        for left in combinations(range(runs), half)
        for right in combinations(range(runs), half)
        if not set(left) & set(right)
    ]
    r = np.array([scipy.stats.pearsonr(*split) for split in splits])[:, 0].mean()
    rank_r = np.array([scipy.stats.spearmanr(*split) for split in splits])[:, 0].mean()
    found = Reliability.of(effects)
    assert found.split_half == pytest.approx(r, rel=1e-12)
    # Written with the reliability of one run: 1/r = 1 + (1/single - 1) / half, and again for all the runs.
    single = 1 / (1 + half * (1 / r - 1))
    assert found.single == pytest.approx(single, rel=1e-12)
    assert found.reliability == pytest.approx(1 / (1 + (1 / single - 1) / runs), rel=1e-12)
    assert found.rank_reliability == pytest.approx(1 / (1 + half / runs * (1 / rank_r - 1)), rel=1e-12)
    assert found.noise_floor == pytest.approx(np.sqrt(np.mean(scipy.stats.sem(x, axis=0) ** 2)), rel=1e-12)


@pytest.mark.parametrize("runs", [9, 10, 13])
def test_drawn_splits_are_disjoint_halves_and_near_all_of_them(runs: int, monkeypatch: pytest.MonkeyPatch):
    splits = reliability._splits(runs, 0)
    half = runs // 2
    assert splits.shape == (100, 2 * half)
    assert all(len(set(split)) == 2 * half for split in splits.tolist())
    assert {tuple(split) for split in splits.tolist()} != {tuple(splits[0].tolist())}
    _, effects = measured(runs, runs, 200)
    few = [Reliability.of(effects, seed=seed).reliability for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    monkeypatch.setattr(reliability, "SPLITS", 10**6)
    assert few[0] == pytest.approx(Reliability.of(effects).reliability, abs=0.005)


def test_one_run_tells_nothing():
    found = Reliability.of(torch.ones(1, 5))
    assert all(math.isnan(value) for value in (found.reliability, found.single, found.ceiling, found.noise_floor))
    assert found.runs_needed() is None
    assert str(found) == "reliability unknown: one run; measure the effects in more (n = 5)"
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert (record["runs"], record["n"], record["reliability"], record["ceiling"]) == (1, 5, None, None)


def test_runs_that_disagree_have_no_reliability():
    found = Reliability.of(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
    assert found.split_half == pytest.approx(-1.0)
    assert (found.reliability, found.rank_reliability, found.single, found.ceiling) == (0.0, 0.0, 0.0, 0.0)
    assert found.runs_needed() is None
    assert found.record()["split_half"] == pytest.approx(-1.0)


def test_effects_that_do_not_vary_have_none():
    found = Reliability.of(torch.full((4, 5), 0.1))
    assert math.isnan(found.reliability)
    assert math.isnan(found.ceiling)
    assert found.runs_needed() is None
    assert found.noise_floor == pytest.approx(0.0, abs=1e-12)


def test_one_large_effect_fakes_it_but_not_by_ranks():
    _, effects = measured(0, 6, 40, noise=20.0)
    effects[:, 7] += 10_000
    found = Reliability.of(effects)
    assert found.reliability > 0.99
    assert found.rank_reliability < 0.6


RUNS_NEEDED = [(1.0, 0.9, 9), (1.0, 0.5, 1), (2.0, 0.8, 16), (1.5, 0.9, 21), (0.1, 0.9, 1), (0.0, 0.9, 1)]


@pytest.mark.parametrize(("noise", "target", "expected"), RUNS_NEEDED)
def test_runs_needed_solves_the_reliability_for_the_runs(noise: float, target: float, expected: int):
    """`1 / (1 + noise^2 / runs) >= target`; the reliability of one run is set, not measured."""
    found = Reliability(2, 9, NAN, NAN, NAN, 1 / (1 + noise**2), NAN)
    assert found.runs_needed(target) == expected
    assert 1 / (1 + noise**2 / expected) >= target - 1e-12
    assert expected == 1 or 1 / (1 + noise**2 / (expected - 1)) < target


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    runs=st.integers(2, 7),
    n=st.integers(3, 12),
    scale=st.floats(1e-6, 1e6),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_scale_sign_order_and_shifts(seed: int, runs: int, n: int, scale: float, sign: float):
    _, effects = measured(seed, runs, n)
    plain = Reliability.of(effects)
    generator = torch.Generator().manual_seed(seed)
    columns, rows = torch.randperm(n, generator=generator), torch.randperm(runs, generator=generator)
    shift = torch.randn(runs, 1, generator=generator, dtype=torch.float64)
    assert -1 <= plain.split_half <= 1
    assert 0 <= plain.single <= plain.reliability <= plain.ceiling <= 1
    needed = plain.runs_needed(0.7)
    assert needed is None or (needed <= runs) == (plain.reliability >= 0.7 - 1e-9)
    for changed, factor in [
        (sign * scale * effects, scale),
        (effects[:, columns], 1.0),
        (effects[rows], 1.0),
        (effects + shift, None),  # common to a run's effects: seen by the noise floor alone
    ]:
        found = Reliability.of(changed)
        for name in ("split_half", "reliability", "rank_reliability", "single"):
            assert getattr(found, name) == pytest.approx(getattr(plain, name), abs=1e-8)
        if factor is not None:
            assert found.noise_floor == pytest.approx(factor * plain.noise_floor, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12))
def test_mean_over_seeds_equals_scipy(values: list[float]):
    found = mean_over_seeds(values)
    x = np.array(values)
    low, high = scipy.stats.t.interval(
        0.95, len(x) - 1, loc=x.mean(), scale=x.std(ddof=1) / math.sqrt(len(x)) or 1e-300
    )
    assert (found.mean, found.low, found.high) == pytest.approx((x.mean(), low, high), rel=1e-7, abs=1e-7)
    assert found.n == len(x)
    assert found == mean_over_seeds(torch.tensor(values, dtype=torch.float64))


def test_one_seed_has_no_interval():
    found = mean_over_seeds([0.5])
    assert (found.mean, found.n) == (0.5, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.record() == {"mean": 0.5, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Reliability.of(torch.ones(5)), r"got \[5\]"),
        (lambda: Reliability.of(torch.ones(0, 5)), r"got \[0, 5\]"),
        (lambda: Reliability.of(torch.ones(4, 2)), "n of at least 3"),
        (lambda: Reliability.of(torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, NAN]])), r"effects holds nan at \[1, 2\]"),
        (lambda: Reliability.of(torch.ones(1, 3)).runs_needed(1.0), "target must be between 0 and 1"),
        (lambda: Reliability.of(torch.ones(1, 3)).runs_needed(NAN), "target must be between 0 and 1"),
        (lambda: mean_over_seeds([]), r"shape \[0\]"),
        (lambda: mean_over_seeds(torch.ones(2, 2)), r"shape \[2, 2\]"),
        (lambda: mean_over_seeds([0.5, NAN]), r"values holds nan at \[1\]"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], object], message: str):
    with pytest.raises(DescriptionError, match=message):
        call()
