"""What goes and what stays: counts, shares, thresholds, ties, classes and sources, against plain re-counting."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagetrace.curate import Drop, DropAbove, KeepTop, Rule, curate
from stagetrace.curate.groups import shares
from stagetrace.curate.rules import amount
from stagetrace.errors import DescriptionError
from stagetrace.results import Scores, Trace
from tests.curate.traces import traced

SCORES = (0.5, -2.0, 1.0, 0.5, -0.25, 0.5, 3.0, 0.0)


@pytest.mark.parametrize(
    ("rule", "dropped"),
    [
        (Drop(1), {6}),
        (Drop(3), {6, 2, 0}),  # of the three at 0.5 the first goes
        (Drop(0.25), {6, 2}),
        (Drop(0.5), {6, 2, 0, 3}),
        (DropAbove(0.5), {6, 2}),
        (DropAbove(0.0), {6, 2, 0, 3, 5}),
        (DropAbove(-0.25), {6, 2, 0, 3, 5, 7}),
        (KeepTop(3), {6, 2, 0, 3, 5}),
        (KeepTop(4), {6, 2, 3, 5}),  # of the three at 0.5 the first stays
        (KeepTop(0.25), {6, 2, 0, 3, 5, 7}),
    ],
)
def test_what_goes(rule: Rule, dropped: set[int]):
    curation = curate(traced(SCORES), rule=rule)
    assert set(curation.drop) == dropped
    assert list(curation.drop) == sorted(curation.drop)
    assert list(curation.keep) == [index for index in range(8) if index not in dropped]
    change = -sum(SCORES[index] for index in dropped) / 8
    assert math.isclose(curation.predicted, change, rel_tol=1e-12, abs_tol=1e-15)
    assert curation.helpful_dropped == sum(SCORES[index] < 0 for index in dropped)


def test_the_stage_is_the_first_or_the_one_named():
    run = Trace({name: Scores(name, torch.tensor(values).double()) for name, values in (("a", [1, 2]), ("b", [2, 1]))})
    assert curate(run, rule=Drop(1)).drop == (1,)
    assert curate(run, stage="b", rule=Drop(1)).drop == (0,)


def test_a_matrix_counts_by_its_mean():
    matrix = torch.tensor([[4.0, 0.0, 1.0], [-4.0, 1.0, 2.0]]).double()
    curation = curate(Trace({"pretrain": Scores("pretrain", matrix)}), rule=Drop(1))
    assert curation.drop == (2,)
    assert curation.predicted == -1.5 / 3


@pytest.mark.parametrize("word", ["10%", "2.5%", "3", "100"])
@pytest.mark.parametrize("kind", [Drop, KeepTop])
def test_a_rule_says_what_was_typed(word: str, kind: type[Drop] | type[KeepTop]):
    assert kind(amount(word, "--x")).words.endswith(f" {word}")


@pytest.mark.parametrize("word", ["", "0", "0%", "100%", "110%", "-3", "-3%", "1.5", "ten", "1e3", "5 %%", "nan"])
def test_an_amount_that_is_none(word: str):
    with pytest.raises(DescriptionError):
        amount(word, "--drop")


REFUSED = {
    "share of one": (lambda: Drop(1.0), "above 0 and below 1"),
    "no examples": (lambda: Drop(0), "at least 1"),
    "a truth value": (lambda: KeepTop(True), "number of examples such as 25"),
    "a text": (lambda: Drop("10%"), "number of examples such as 25"),  # pyright: ignore[reportArgumentType]
    "a threshold of NaN": (lambda: DropAbove(math.nan), "finite"),
    "everything": (lambda: curate(traced(SCORES), rule=Drop(8)), "drops every example of 8"),
    "more than all": (lambda: curate(traced(SCORES), rule=Drop(9)), "drops every example of 8"),
    "nothing": (lambda: curate(traced(SCORES), rule=DropAbove(3.0)), "drops no example of 8"),
    "nothing by rounding": (lambda: curate(traced(SCORES), rule=Drop(0.01)), "drops no example of 8"),
    "keep all": (lambda: curate(traced(SCORES), rule=KeepTop(8)), "drops no example of 8"),
    "no such stage": (lambda: curate(traced(SCORES), stage="x", rule=Drop(1)), "no stage of that name"),
    "no scores": (lambda: curate(Trace({}), rule=Drop(1)), "no stage of this run has scores"),
    "no rule": (lambda: curate(traced(SCORES), rule=0.1), "rule must be"),  # pyright: ignore[reportArgumentType]
    "too few classes": (lambda: curate(traced(SCORES), rule=Drop(1), classes=[1, 2]), "8 examples, got 2"),
    "lists for labels": (lambda: curate(traced(SCORES), rule=Drop(1), groups=[[1]] * 8), "got a list for example 0"),
    "threshold with classes": (
        lambda: curate(traced(SCORES), rule=DropAbove(0.0), classes=[1] * 8),
        "cannot be balanced",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str):
    call, words = REFUSED[name]
    with pytest.raises(DescriptionError, match=words):
        call()


# Classes


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.data())
def test_shares_are_fair(sizes: list[int], data: st.DataObject):
    count = data.draw(st.integers(0, sum(sizes)))
    quotas = shares(sizes, count)
    assert sum(quotas) == count
    for size, quota in zip(sizes, quotas, strict=True):
        assert abs(quota - count * size / sum(sizes)) < 1
        assert 0 <= quota <= size


@pytest.mark.parametrize("rule", [Drop(0.2), Drop(7), KeepTop(0.8), KeepTop(30)])
def test_each_class_loses_the_same_share_of_its_most_harmful(rule: Rule):
    scores = torch.randn(50, dtype=torch.float64)
    labels = ["a"] * 25 + ["b"] * 15 + ["c"] * 10
    curation = curate(traced(scores.tolist()), rule=rule, classes=labels)
    lost = Counter(labels[index] for index in curation.drop)
    total = rule.count(scores)
    assert sum(lost.values()) == total
    for name, size in Counter(labels).items():
        assert abs(lost[name] - total * size / 50) < 1
        mine = [index for index in range(50) if labels[index] == name]
        worst = sorted(mine, key=lambda index: -scores[index].item())[: lost[name]]
        assert {index for index in curation.drop if labels[index] == name} == set(worst)
    assert [(c.name, c.examples, c.dropped) for c in curation.classes] == [
        (name, size, lost[name]) for name, size in Counter(labels).items()
    ]


def test_labels_may_be_tensors_arrays_and_missing():
    for labels in (torch.tensor([0, 0, 1, 1] * 2), np.array([0, 0, 1, 1] * 2), [None, None, 0.5, 0.5] * 2):
        assert [c.examples for c in curate(traced(SCORES), rule=Drop(2), classes=labels).classes] == [4, 4]  # type: ignore
    missing = curate(traced(SCORES), rule=Drop(2), groups=[float("nan") for _ in range(8)])
    assert [(group.name, group.examples) for group in missing.groups] == [("nan", 8)]


# Sources


def test_totals_by_source():
    scores = torch.randn(400, dtype=torch.float64)
    scores[:300] += 0.4
    names = np.array(["web"] * 300 + ["books"] * 99 + ["single"])
    curation = curate(traced(scores.tolist()), rule=Drop(0.1), groups=names.tolist())
    assert [group.name for group in curation.groups] == sorted(
        set(names), key=lambda name: -scores.numpy()[names == name].mean()
    )
    for group in curation.groups:
        mine = scores.numpy()[names == group.name]
        assert group.examples == len(mine)
        assert group.dropped == sum(names[index] == group.name for index in curation.drop)
        assert group.share_dropped == group.dropped / group.examples
        assert math.isclose(group.total, mine.sum(), rel_tol=1e-12)
        assert math.isclose(group.mean, mine.mean(), rel_tol=1e-12)
        assert math.isclose(group.removal_effect, -mine.sum() / 400, rel_tol=1e-12)
        if group.examples == 1:
            assert all(map(math.isnan, (*group.total_interval, *group.mean_interval)))
            continue
        # independent of the bootstrap: the normal interval of a mean
        half = 1.96 * mine.std(ddof=1) / math.sqrt(len(mine))
        for end, sign in zip(group.mean_interval, (-1, 1), strict=True):
            assert math.isclose(end, mine.mean() + sign * half, abs_tol=0.15 * half)
        for total, mean in zip(group.total_interval, group.mean_interval, strict=True):
            assert math.isclose(total, mean * group.examples, rel_tol=1e-12)


def test_sources_do_not_change_what_goes():
    assert (
        curate(traced(SCORES), rule=Drop(3), groups=list("abababab")).drop == curate(traced(SCORES), rule=Drop(3)).drop
    )
