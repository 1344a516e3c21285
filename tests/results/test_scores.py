"""Scores and the tables made of them: order, sign, refusals."""

# pyarrow and pandas have no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import re
import sys
from collections.abc import Callable
from io import StringIO
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from stagetrace.errors import DataError, DescriptionError
from stagetrace.results import Scores, Top

MakeScores = Callable[..., Scores]
# few distinct values, so that ties are common
tied = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)


def of(values: object) -> Scores:
    return Scores("pretrain", torch.tensor(values, dtype=torch.float64))


@settings(database=None, deadline=None)
@given(tied, st.integers(1, 35), st.booleans())
def test_top_agrees_with_a_naive_sort(values: list[float], k: int, harmful: bool) -> None:
    naive = sorted(range(len(values)), key=lambda i: (-values[i] if harmful else values[i], i))[:k]
    top = of(values).top(k, harmful=harmful)
    assert list(top.indices) == naive
    assert list(top.scores) == [values[i] for i in naive]
    assert [tuple(row) for row in top] == list(zip(top.indices, top.scores, top.removal_effects, strict=True))
    assert len(top) == len(naive)


@settings(database=None, deadline=None)
@given(tied)
def test_rank_is_the_place_in_the_full_ranking(values: list[float]) -> None:
    scores = of(values)
    assert [scores.rank(i) for i in scores.top(len(values)).indices] == list(range(1, len(values) + 1))


def test_a_large_tie_keeps_the_order_of_the_examples() -> None:
    assert of([1.0] * 5000).top(5000).indices == tuple(range(5000))
    assert of([1.0] * 5000).top(5000, harmful=False).indices == tuple(range(5000))


def test_removal_effect_is_the_change_of_the_query_loss_without_the_example() -> None:
    # One parameter w, loss_i = (w - x_i)^2 / 2, query loss = w: the optimum is the mean, and every Hessian is one.
    # Without example i of n the optimum moves by (mean - x_i) / (n - 1); the first-order prediction has n.
    x = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    influence = -(x.mean() - x)  # - query gradient * inverse Hessian * gradient of example i
    scores = Scores("only", influence)
    without = torch.stack([torch.cat([x[:i], x[i + 1 :]]).mean() for i in range(3)])
    exact = without - x.mean()
    torch.testing.assert_close(scores.removal_effect * 3 / 2, exact)
    # the example at 5 pulls the loss up: harmful, and removing it helps
    assert scores.top(1).indices == (2,)
    assert scores.top(1)[0].score > 0 > scores.top(1)[0].removal_effect


def test_a_matrix_is_ranked_by_its_mean_or_by_one_query() -> None:
    scores = of([[3.0, 0.0, 1.0], [-3.0, 0.5, 1.0]])
    assert scores.top(3).indices == (2, 1, 0)
    assert scores.top(3).scores == (1.0, 0.25, 0.0)
    assert of([[-1.0], [-2.0]]).top().scores == (-1.5,)
    assert "mean over 2 queries" in scores.top(3).title
    assert scores.top(3, query=0).indices == (0, 2, 1)
    assert "query 0" in scores.top(3, query=0).title
    assert scores.top(1, query=1, harmful=False).removal_effects == (1.0,)
    assert scores.rank(0, query=0) == 1
    assert (scores.n_examples, scores.n_queries) == (3, 2)
    assert "mean over" not in of([1.0]).top().title


def test_summaries() -> None:
    scores = of([1.0, -3.0, 0.0, 0.5])
    assert scores.share_harmful == 0.5
    assert scores.total == -1.5
    assert of([[1.0, -3.0], [1.0, 4.0]]).share_harmful == 1.0


def test_every_view_says_sign_and_unit() -> None:
    top = of([1.0, -3.0]).top()
    console = Console(width=140, record=True, file=StringIO())
    console.print(top)
    for view in (str(top), console.export_text(), top._repr_html_()):
        assert "score (+ harmful, query loss)" in view
        assert "effect of removal (query loss; - helps)" in view
        assert "+1.000e+00" in view
    assert "+ harmful" in repr(of([1.0]))
    assert "unit query loss" in str(of([1.0]))
    assert "2 queries x 1 examples, mean" in repr(of([[1.0], [2.0]]))


def test_html_escapes_the_stage_name() -> None:
    page = Scores("<b>", torch.ones(1, dtype=torch.float64))._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_markup_in_a_stage_name_is_shown_as_it_is() -> None:
    assert "[red]x" in str(Scores("[red]x", torch.ones(1, dtype=torch.float64)).top())


def test_to_pandas_by_name() -> None:
    values, shared, head = (torch.tensor([v, -v], dtype=torch.float64) for v in (3.0, 1.0, 2.0))
    scores = Scores("s", values, shared, head)
    frame = scores.to_pandas()
    assert list(frame.columns) == ["index", "score", "removal_effect", "via_shared", "via_head"]
    assert frame["removal_effect"].tolist() == [-1.5, 1.5]
    assert of([[1.0, 2.0], [3.0, 4.0]]).to_pandas()["score_1"].tolist() == [3.0, 4.0]
    assert scores.top(1).to_pandas().to_dict("records") == [{"index": 0, "score": 3.0, "removal_effect": -1.5}]


def test_to_pandas_without_pandas_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DescriptionError, match="pip install pandas"):
        of([1.0]).to_pandas()


def test_top_is_immutable() -> None:
    top = of([1.0]).top()
    with pytest.raises(AttributeError):
        top.rows = ()  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(top, Top)
    assert isinstance(top.rows, tuple)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Scores("s", torch.ones(2)), "float64 on the CPU, got torch.float32"),
        (lambda: Scores("s", torch.ones(2, 2, 2).double()), "got [2, 2, 2]"),
        (lambda: Scores("s", torch.ones(0).double()), "got [0]"),
        (lambda: Scores("s", torch.ones(2).double(), torch.ones(3).double(), torch.ones(2).double()), "got [3]"),
        (lambda: Scores("s", torch.ones(2).double(), torch.ones(2).double()), "give both or neither"),
        (lambda: of([1.0]).top(0), "k must be at least 1, got 0"),
        (lambda: of([1.0]).top(query=0), 'Query(..., reduction="none")'),
        (lambda: of([[1.0]]).top(query=1), "type 0 to 0"),
        (lambda: of([1.0]).rank(1), "type 0 to 0"),
    ],
)
def test_refusals(build: Callable[[], object], message: str) -> None:
    with pytest.raises(DescriptionError, match=re.escape(message)) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused_by_its_index(bad: float) -> None:
    with pytest.raises(DataError, match=f"example 2 has the score {bad}"):
        of([[0.0, 0.0, 0.0], [0.0, 0.0, bad]])


def test_the_ranking_is_monotone_for_any_scores(scores: MakeScores) -> None:
    for better, worse in pairwise(scores("s", n=50).top(50).scores):
        assert better >= worse


def test_an_end_of_the_other_sign_says_so() -> None:
    helpful = Scores("fit", torch.tensor([-1.0, -2.0, -3.0]).double())
    assert "no score is above 0: all are helpful" in helpful.top(2).title
    assert "no score" not in helpful.top(2, harmful=False).title
    harmful = Scores("fit", torch.tensor([1.0, 0.5, 2.0]).double())
    assert "no score is below 0: all are harmful" in harmful.top(2, harmful=False).title
    assert "no score" not in harmful.top(2).title
