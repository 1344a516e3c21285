"""The linear datamodelling score against SciPy, and the sums of groups against a matrix product."""

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
from stagetrace.validation.agreement import bootstrap
from stagetrace.validation.datamodel import LinearDatamodelling, group_effects


def changes(seed: int, queries: int = 3, groups: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(queries, groups, generator=generator, dtype=torch.float64)
    return p, p + torch.randn(queries, groups, generator=generator, dtype=torch.float64)


def spearman(left: Tensor, right: Tensor) -> float:
    return np.asarray(scipy.stats.spearmanr(left.numpy(), right.numpy())).flat[0]


@pytest.mark.parametrize("ties", [False, True])
def test_equals_scipy(ties: bool):
    p, t = changes(0)
    if ties:
        p, t = p.round(), t.round()
    found = LinearDatamodelling.of(p, t)
    expected = [spearman(ours, true) for ours, true in zip(p, t, strict=True)]
    assert found.per_query == pytest.approx(expected, rel=1e-12)
    assert found.lds == pytest.approx(sum(expected) / 3, rel=1e-12)
    assert (found.groups, found.queries) == (20, 3)


def test_the_interval_is_that_of_whole_groups_one_sample_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """The draws are ours, everything after them is SciPy's and NumPy's; in blocks that do not divide their number."""
    monkeypatch.setattr(agreement, "BLOCK", 7 * 12 * 3)
    p, t = changes(1, groups=12)
    drawn: list[Tensor] = []

    def kept(indices: Tensor) -> Tensor:
        drawn.append(indices)
        return indices

    bootstrap(kept, 12, 100, seed=5, width=3)
    assert len(drawn) == 15
    means = [
        sum(spearman(ours[draw], true[draw]) for ours, true in zip(p, t, strict=True)) / 3 for draw in torch.cat(drawn)
    ]
    found = LinearDatamodelling.of(p, t, resamples=100, seed=5)
    assert found.interval == pytest.approx(np.quantile(means, [0.025, 0.975]))


@pytest.mark.slow
def test_the_interval_is_that_of_scipys_bootstrap():
    p, t = changes(2, queries=1, groups=25)
    theirs = scipy.stats.bootstrap(
        (p[0].numpy(), t[0].numpy()),
        lambda ours, true: scipy.stats.spearmanr(ours, true)[0],
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=1,
    ).confidence_interval
    found = LinearDatamodelling.of(p[0], t[0], resamples=10_000)
    assert found.interval == pytest.approx((theirs.low, theirs.high), abs=0.04)


def test_a_linear_loss_is_predicted_exactly():
    """A loss that is a sum over the examples that stay: Park et al.'s score of those and ours of the others agree."""
    generator = torch.Generator().manual_seed(3)
    effects = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    groups = [torch.randperm(30, generator=generator)[:15].tolist() for _ in range(12)]
    loss = -effects  # each example's part of the loss
    stays = torch.ones(12, 30, dtype=torch.float64)
    for row, group in zip(stays, groups, strict=True):
        row[group] = 0
    true = loss @ stays.T - loss.sum(dim=1, keepdim=True)
    found = LinearDatamodelling.of(group_effects(effects, groups), true)
    assert found.per_query == pytest.approx((1.0, 1.0))
    assert found.interval == pytest.approx((1.0, 1.0))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(3, 12), st.floats(1e-6, 1e6))
def test_scale_sign_order_and_monotone_changes(seed: int, queries: int, groups: int, scale: float):
    p, t = changes(seed, queries, groups)
    plain = LinearDatamodelling.of(p, t, resamples=50)
    order = torch.randperm(groups, generator=torch.Generator().manual_seed(seed))
    for ours, true, sign in [(scale * p, t.exp(), 1), (-p, -t, 1), (p, -t, -1)]:
        found = LinearDatamodelling.of(ours, true, resamples=50)
        low, high = plain.interval
        assert found.per_query == pytest.approx([sign * value for value in plain.per_query], abs=1e-9)
        assert found.interval == pytest.approx((low, high) if sign > 0 else (-high, -low), abs=1e-9)
    assert LinearDatamodelling.of(p[:, order], t[:, order], resamples=1).per_query == pytest.approx(plain.per_query)
    if queries == 1:
        assert LinearDatamodelling.of(p[0], t[0], resamples=50) == plain


def test_a_query_that_does_not_vary_has_none():
    p, t = changes(4, queries=2)
    p[1] = 0.1
    found = LinearDatamodelling.of(p, t, resamples=20)
    assert math.isfinite(found.per_query[0])
    assert math.isnan(found.per_query[1])
    assert math.isnan(found.lds)
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record == {"lds": None, "interval": [None, None], "groups": 20, "queries": 2}


def test_two_groups_tell_nothing_of_their_spread():
    found = LinearDatamodelling.of(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    assert found.lds == pytest.approx(1.0)
    assert str(found) == "LDS 1.0000 (95 %: nan to nan; 2 groups, 1 query)"


def test_the_seed_decides_and_torchs_own_stays():
    p, t = changes(5)
    state = torch.get_rng_state()
    assert LinearDatamodelling.of(p, t, seed=3) == LinearDatamodelling.of(p, t, seed=3)
    assert LinearDatamodelling.of(p, t, seed=3).interval != LinearDatamodelling.of(p, t, seed=4).interval
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=20, deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(0, 8), min_size=1, unique=True), min_size=1, max_size=5),
    queries=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 10**6),
)
def test_groups_are_summed_as_by_a_matrix(groups: list[list[int]], queries: int | None, seed: int):
    shape = (9,) if queries is None else (queries, 9)
    effects = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    member = np.array([[float(example in group) for example in range(9)] for group in groups])
    found = group_effects(effects, groups)
    assert found.dtype == torch.float64
    assert found.shape == (*shape[:-1], len(groups))
    np.testing.assert_allclose(found.numpy(), effects.numpy() @ member.T, atol=1e-12)


def test_groups_may_be_tensors_and_arrays():
    effects = torch.tensor([0.5, -1.0, 2.0])
    for groups in ([torch.tensor([0, 1]), torch.tensor([2])], [np.array([0, 1]), np.array([2])], ((0, 1), (2,))):
        assert group_effects(effects, groups).tolist() == [-0.5, 2.0]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearDatamodelling.of(torch.ones(3), torch.ones(1, 3)), r"got \[3\] and \[1, 3\]"),
        (lambda: LinearDatamodelling.of(torch.ones(2, 1), torch.ones(2, 1)), "at least 2 groups"),
        (lambda: LinearDatamodelling.of(torch.ones(0, 4), torch.ones(0, 4)), r"got \[0, 4\]"),
        (lambda: LinearDatamodelling.of(torch.ones(1, 1, 4), torch.ones(1, 1, 4)), r"got \[1, 1, 4\]"),
        (lambda: LinearDatamodelling.of(torch.tensor([1.0, math.nan]), torch.ones(2)), r"predicted holds nan at \[1\]"),
        (lambda: LinearDatamodelling.of(torch.ones(2), torch.tensor([1.0, math.inf])), r"true holds inf at \[1\]"),
        (lambda: LinearDatamodelling.of(torch.ones(3), torch.ones(3), resamples=0), "resamples must be a whole number"),
        (lambda: group_effects(torch.ones(1, 1, 3), [[0]]), r"got \[1, 1, 3\]"),
        (lambda: group_effects(torch.tensor([1.0, math.nan]), [[0]]), r"removal_effect holds nan at \[1\]"),
        (lambda: group_effects(torch.ones(3), []), "no group"),
        (lambda: group_effects(torch.ones(3), [[0], []]), "group 1 is empty"),
        (lambda: group_effects(torch.ones(3), [[0, 3]]), "group 0: example 3 does not exist; type 0 to 2"),
        (lambda: group_effects(torch.ones(3), [[-1]]), "group 0: example -1 does not exist"),
        (lambda: group_effects(torch.ones(3), [[0], [1, 1]]), "group 1 names an example twice"),
        (lambda: group_effects(torch.ones(3), [[0.5]]), "group 0 must hold whole numbers"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], object], message: str):
    with pytest.raises(DescriptionError, match=message):
        call()
