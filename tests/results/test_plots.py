"""Pictures of scores: every example is counted on its own side, and the words agree."""

# pandas and matplotlib leave much of their types out.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportAttributeAccessIssue=false

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagetrace.errors import DescriptionError
from stagetrace.results import Scores, Trace
from stagetrace.results.plot import histogram

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    pyplot.close("all")


@settings(database=None, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=50))
def test_each_example_is_counted_once_and_on_its_own_side(values: list[float]) -> None:
    counts, edges = histogram(torch.tensor(values, dtype=torch.float64))
    assert counts.sum() == len(values)
    assert len(edges) == len(counts) + 1
    assert counts[edges[1:] > 0].sum() == sum(value > 0 for value in values)
    assert edges[0] <= min(values)
    assert edges[-1] >= max(values) * (1 - 1e-12)


def test_a_plot_says_both_sides_in_words_and_numbers() -> None:
    scores = Scores("pretrain", torch.tensor([[1.0, -2.0, 0.0, 3.0]] * 2).double())
    axes = scores.plot()
    words = " ".join(text.get_text() for text in axes.texts)
    assert words == "← helpful (−) harmful (+) → 1 of 4 (25%) 2 of 4 (50%)"
    assert axes.get_title() == "Stage 'pretrain', mean over 2 queries"
    assert axes.get_xlabel() == "score (query loss; + harmful, − helpful)"
    bars = {round(bar.get_x() + bar.get_width() / 2, 2): bar for bar in axes.patches if bar.get_height()}
    assert sorted(bar.get_height() for bar in bars.values()) == [1, 1, 1, 1]
    assert all((bar.get_hatch() is not None) == (middle > 0) for middle, bar in bars.items())


def test_a_plot_is_drawn_where_it_is_asked_for() -> None:
    _, wanted = pyplot.subplots()
    assert Scores("s", torch.ones(2).double()).plot(wanted) is wanted
    assert len(pyplot.get_fignums()) == 1


def test_many_examples_have_a_logarithmic_axis_with_plain_numbers() -> None:
    values = torch.cat([torch.randn(3_000, generator=torch.Generator().manual_seed(0)) / 10, torch.tensor([5.0])])
    axes = Scores("s", values.double()).plot()
    axes.figure.canvas.draw()
    assert axes.get_yscale() == "log"
    assert {"1", "10", "100", "1,000"} <= {label.get_text() for label in axes.get_yticklabels()}


def test_a_trace_has_a_panel_a_stage_and_leaves_no_figure_open(trace: Callable[..., Trace]) -> None:
    figure = trace().plot()
    assert [axes.get_title() for axes in figure.axes] == ["Stage 'pretrain'", "Stage 'finetune'"]
    assert pyplot.get_fignums() == []
    with pytest.raises(DescriptionError, match="no stage has scores"):
        Trace({}).plot()


def test_without_matplotlib_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch, trace: Callable[..., Trace]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (trace().plot, trace()["pretrain"].plot):
        with pytest.raises(DescriptionError, match=r"pip install 'stagetrace\[report\]'"):
            draw()


def test_a_trace_as_a_frame_has_a_row_a_stage(trace: Callable[..., Trace]) -> None:
    whole = trace()
    frame = whole.to_pandas()
    assert list(frame.index) == ["pretrain", "finetune"]
    assert frame["examples"].tolist() == [7, 3]
    assert frame["largest_score"].tolist() == [float(whole[stage].values.max()) for stage in whole]
    assert frame["smallest_score"].tolist() == [float(whole[stage].values.min()) for stage in whole]
    assert frame["share_harmful"].tolist() == [whole[stage].share_harmful for stage in whole]
    assert frame["status"].tolist() == ["converged", "stopped at the step limit"]
    assert Trace({"a": Scores("a", torch.ones(1).double())}).to_pandas()["residual"].tolist() == [None]
