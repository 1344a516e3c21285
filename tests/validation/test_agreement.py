"""Correlations, slope and their intervals against SciPy and NumPy."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagetrace.errors import DescriptionError
from stagetrace.validation import agreement
from stagetrace.validation.agreement import Agreement, bootstrap, percentiles

NAN = math.nan


def pairs(seed: int, n: int = 40, signal: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(n, generator=generator, dtype=torch.float64)
    return p, signal * p + torch.randn(n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("ties", [False, True])
def test_equals_scipy(ties: bool):
    p, t = pairs(2)
    t = t.exp()
    if ties:
        p, t = p.round(), t.round()
    found = Agreement.of(p, t)
    assert found.n == 40
    assert found.pearson_r == pytest.approx(scipy.stats.pearsonr(p.numpy(), t.numpy())[0], rel=1e-12)
    assert found.spearman_r == pytest.approx(scipy.stats.spearmanr(p.numpy(), t.numpy())[0], rel=1e-12)
    assert found.slope == pytest.approx(np.linalg.lstsq(p.numpy()[:, None], t.numpy(), rcond=None)[0][0], rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_intervals_are_those_of_the_statistics_one_sample_at_a_time(ties: bool, monkeypatch: pytest.MonkeyPatch):
    """The draws are ours, everything after them is SciPy's and NumPy's; in blocks that do not divide their number."""
    monkeypatch.setattr(agreement, "BLOCK", 7 * 12)
    p, t = pairs(3, n=12)
    if ties:
        p, t = p.round(), t.round()
    drawn: list[Tensor] = []

    def kept(indices: Tensor) -> Tensor:
        drawn.append(indices)
        return indices

    bootstrap(kept, 12, 100, seed=5)
    samples = [(p[draw].numpy(), t[draw].numpy()) for draw in torch.cat(drawn)]
    found = Agreement.of(p, t, resamples=100, seed=5)
    assert len(samples) == 100
    assert len(drawn) == 15
    for interval, statistic in [
        (found.pearson_interval, lambda a, b: scipy.stats.pearsonr(a, b)[0]),
        (found.spearman_interval, lambda a, b: scipy.stats.spearmanr(a, b)[0]),
        (found.slope_interval, lambda a, b: np.linalg.lstsq(a[:, None], b, rcond=None)[0][0]),
    ]:
        assert interval == pytest.approx(np.quantile([statistic(*sample) for sample in samples], [0.025, 0.975]))


def test_intervals_are_those_of_scipys_bootstrap():
    p, t = pairs(4)
    found = Agreement.of(p, t, resamples=20_000)
    for interval, statistic in [
        (found.pearson_interval, lambda a, b, axis: scipy.stats.pearsonr(a, b, axis=axis)[0]),
        (found.slope_interval, lambda a, b, axis: (a * b).sum(axis) / (a * a).sum(axis)),
    ]:
        theirs = scipy.stats.bootstrap(
            (p.numpy(), t.numpy()), statistic, paired=True, method="percentile", n_resamples=20_000, batch=1000, rng=1
        ).confidence_interval
        assert interval == pytest.approx((theirs.low, theirs.high), abs=0.015)


@pytest.mark.slow
def test_the_interval_holds_the_truth_as_often_as_the_docstring_says():
    truth, hits = 0.8, 0
    for seed in range(300):
        p, t = pairs(1000 + seed, n=40, signal=truth / math.sqrt(1 - truth**2))
        low, high = Agreement.of(p, t, resamples=200, seed=seed).pearson_interval
        hits += low <= truth <= high
    assert 0.89 < hits / 300 < 0.97


def test_one_outlier_is_seen():
    p, t = pairs(0, n=30, signal=0.0)
    p[4], t[4] = -100.0, -90.0
    found = Agreement.of(p, t)
    rest = np.arange(30) != 4
    assert found.pearson_r > 0.99
    assert found.without_largest == pytest.approx(scipy.stats.pearsonr(p.numpy()[rest], t.numpy()[rest])[0], rel=1e-12)
    assert abs(found.without_largest) < 0.5


def test_what_is_unknown_is_nan():
    flat, rising = torch.full((3,), 0.1, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0])
    assert flat.mean() != flat[0]  # by a rounding error, which must not be taken for variation
    for found in (Agreement.of(flat, rising), Agreement.of(rising, flat)):
        for value in (found.pearson_r, found.spearman_r, *found.pearson_interval, *found.spearman_interval):
            assert math.isnan(value)
        assert math.isfinite(found.slope)
        assert all(math.isfinite(end) for end in found.slope_interval)
    nothing = Agreement.of(torch.zeros(3), rising)
    assert all(math.isnan(value) for value in (nothing.slope, *nothing.slope_interval))


def test_two_pairs_tell_nothing_of_their_spread():
    found = Agreement.of(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))
    assert (found.pearson_r, found.spearman_r, found.slope) == pytest.approx((-1.0, -1.0, 1.0))
    for value in (*found.pearson_interval, *found.spearman_interval, *found.slope_interval, found.without_largest):
        assert math.isnan(value)


def test_samples_that_do_not_vary_are_left_out_of_the_interval():
    """Of 3 pairs, 1 in 9 samples holds the same pair three times; the others have r = 1."""
    found = Agreement.of(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
    assert found.pearson_interval == pytest.approx((1.0, 1.0))
    assert percentiles(torch.tensor([NAN, 1.0, NAN, 3.0], dtype=torch.float64)) == pytest.approx((1.05, 2.95))
    assert all(math.isnan(end) for end in percentiles(torch.tensor([NAN, NAN])))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 20))
def test_scale_sign_and_order(seed: int, ours: float, theirs: float, n: int):
    p, t = pairs(seed, n=n)
    plain = Agreement.of(p, t, resamples=50)
    scaled = Agreement.of(ours * p, theirs * t, resamples=50)
    flipped = Agreement.of(p, -t, resamples=50)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = Agreement.of(p[order], t[order], resamples=50)
    for name in ("pearson_r", "spearman_r", "without_largest"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), abs=1e-9)
        assert getattr(flipped, name) == pytest.approx(-getattr(plain, name), abs=1e-9)
        assert getattr(shuffled, name) == pytest.approx(getattr(plain, name), abs=1e-9)
    for name in ("pearson_interval", "spearman_interval"):
        low, high = getattr(plain, name)
        assert -1 <= low <= high <= 1
        assert getattr(scaled, name) == pytest.approx((low, high), abs=1e-9)
        assert getattr(flipped, name) == pytest.approx((-high, -low), abs=1e-9)
    assert scaled.slope == pytest.approx(plain.slope * theirs / ours, rel=1e-9)
    assert scaled.slope_interval == pytest.approx([end * theirs / ours for end in plain.slope_interval], rel=1e-9)
    assert shuffled.slope == pytest.approx(plain.slope, rel=1e-9, abs=1e-12)


def test_the_seed_decides_and_torchs_own_stays():
    p, t = pairs(1)
    state = torch.get_rng_state()
    assert Agreement.of(p, t, seed=3) == Agreement.of(p, t, seed=3)
    assert Agreement.of(p, t, seed=3).pearson_interval != Agreement.of(p, t, seed=4).pearson_interval
    assert torch.equal(torch.get_rng_state(), state)


def test_a_line_and_a_record():
    found = Agreement.of(torch.tensor([1.0, 2.0, 4.0], requires_grad=True), torch.tensor([1.0, 1.0, 1.0]))
    assert str(found) == "r = nan (95 %: nan to nan), Spearman nan, slope 0.3333 (n = 3)"
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["pearson_r"] is None
    assert record["pearson_interval"] == [None, None]
    assert record["slope"] == pytest.approx(1 / 3)
    assert record["slope_interval"] == pytest.approx(found.slope_interval)
    assert list(record) == [
        *("n", "pearson_r", "pearson_interval", "spearman_r", "spearman_interval"),
        *("slope", "slope_interval", "without_largest"),
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Agreement.of(torch.ones(3), torch.ones(2)), r"got \[3\] and \[2\]"),
        (lambda: Agreement.of(torch.ones(2, 2), torch.ones(2, 2)), r"got \[2, 2\]"),
        (lambda: Agreement.of(torch.ones(1), torch.ones(1)), "at least 2"),
        (
            lambda: Agreement.of(torch.tensor([1.0, NAN, NAN]), torch.ones(3)),
            r"predicted holds nan at \[1\], and 2 of 3",
        ),
        (lambda: Agreement.of(torch.ones(2), torch.tensor([1.0, -math.inf])), r"true holds -inf at \[1\]"),
        (lambda: Agreement.of(torch.ones(3), torch.ones(3), resamples=0), "resamples must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], object], message: str):
    with pytest.raises(DescriptionError, match=message):
        call()
