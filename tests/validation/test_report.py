"""What a validation says: its tables, its record and its pictures."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from torch import Tensor

from stagetrace.errors import ResultsError, StagetraceWarning
from stagetrace.validation import Agreement, Control, LinearDatamodelling, Reliability, Validation, plots
from stagetrace.validation.report import SIGN, control, record, save, tables, work
from stagetrace.validation.validate import Measured

UNITS: Mapping[str, str | None] = {"score": "query loss", "ranking": None, "constant": "query loss"}

CONTROL = Control(2.0, torch.tensor([2.0, 2.01, 2.02], dtype=torch.float64), is_stochastic=True)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(choice: str, removals: tuple[tuple[int, ...], ...], runs: int, seed: int, by: float = 1.0) -> Measured:
    """Noisy effects that the first estimator predicts well, the second badly, and the third not at all."""
    n = len(removals)
    signal = 1e-3 * drawn(n, seed=seed)
    effects = 1.2 * signal + 2e-4 * drawn(runs, n, seed=seed + 1)
    predicted = {
        "score": signal,
        "ranking": drawn(n, seed=seed + 2),
        "constant": torch.zeros(n, dtype=torch.float64),
    }
    return Measured(
        choice,
        removals,
        by,
        effects,
        Reliability.of(effects) if runs > 1 else None,
        predicted,
        {name: Agreement.of(values, effects.mean(dim=0)) for name, values in predicted.items()},
    )


def validation(runs: int = 3, choices: int = 2) -> Validation:
    singles = tuple((index,) for index in range(9))
    pairs = tuple((index, index + 1) for index in range(7))
    found = [measured("9 largest", singles, runs, 0), measured("7 groups of 0.2", pairs, runs, 10, by=0.1)]
    return Validation("pretrain", tuple(found[:choices]), UNITS, 16 * runs, 120.0, CONTROL, {})


def cells(text: str, name: str) -> list[str]:
    """The numbers in the row of an estimator."""
    return next(line for line in text.splitlines() if line.split()[:1] == [name]).replace(" to ", "..").split()[1:]


def test_a_table_says_the_figures_of_each_estimator():
    found = validation()
    text = tables(found)[0].text()
    a = found["9 largest"].agreement["score"]
    assert "stage 'pretrain', 9 largest (n = 9, mean of 3 runs)" in text
    assert cells(text, "score") == [
        f"{a.pearson_r:.4f}",
        f"{a.pearson_interval[0]:.3f}..{a.pearson_interval[1]:.3f}",
        f"{a.spearman_r:.4f}",
        f"{a.slope:.2f}",
        f"{a.without_largest:.4f}",
    ]
    assert f"{found['9 largest'].reliability}" in " ".join(text.split())


def test_a_slope_is_shown_where_the_prediction_has_the_unit_and_what_is_not_defined_as_a_dash():
    text = tables(validation())[0].text()
    assert cells(text, "ranking")[3] == "-"
    assert cells(text, "ranking")[0] != "-"
    assert cells(text, "constant") == ["-"] * 5
    assert "nan" not in text


def test_groups_get_the_linear_datamodelling_score():
    found = validation()
    text = tables(found)[1].text()
    groups = found["7 groups of 0.2"]
    lds = LinearDatamodelling.of(groups.predicted["score"], groups.true)
    assert cells(text, "score")[2:4] == [f"{lds.lds:.4f}", f"{lds.interval[0]:.3f}..{lds.interval[1]:.3f}"]
    assert "LDS" not in tables(found)[0].text()


def test_one_run_tells_nothing_of_reliability():
    text = tables(validation(runs=1))[0].text()
    assert "reliability" not in text
    assert "(n = 9)" in text


def test_how_much_was_trained():
    assert work(validation()) == "48 retrainings from stage 'pretrain' on, 24 a minute in each process"


def test_where_the_control_ended():
    where = "query loss: 2 of the traced model, 2.01 of the control (mean of 3 runs, standard deviation 1.0e-02)"
    assert control(validation()) == where
    away = Control(1.5, CONTROL.losses, is_stochastic=True)
    said = control(replace(validation(), control=away))
    assert said.startswith("WARNING: query loss: 1.5 of the traced model, 2.01 of the control")
    assert "ends at another model than the one that was traced" in said


def test_the_record_holds_every_number():
    found = validation()
    said: Any = json.loads(json.dumps(record(found, {"fit": "sgd"}, {"BM25": "no text"}), allow_nan=False))
    assert said["sign"] == SIGN
    assert "negative = removing them helps" in SIGN
    assert said["unit"] == "query loss"
    assert said["settings"] == {"fit": "sgd"}
    assert said["not_applicable"] == {"BM25": "no text"}
    assert said["estimators"] == {name: {"unit": unit} for name, unit in UNITS.items()}
    noise = pytest.approx(0.01)
    assert said["control"] == {"traced": 2.0, "losses": [2.0, 2.01, 2.02], "noise": noise, "elsewhere": False}
    assert (said["retrainings"], said["retrainings_per_minute"]) == (48, 24.0)
    for written, each in zip(said["choices"], found.measured, strict=True):
        assert (written["choice"], written["by"], written["runs"]) == (each.choice, each.by, 3)
        assert written["reliability"] == each.reliability.record()
        for name, agreement in each.agreement.items():
            held = {key: value for key, value in written["agreement"][name].items() if key != "lds"}
            assert held == agreement.record()
        assert [tuple(removal["removed"]) for removal in written["removals"]] == list(each.removals)
        assert torch.equal(torch.tensor([r["true"] for r in written["removals"]], dtype=torch.float64).mT, each.effects)
        for name, values in each.predicted.items():
            assert [removal["predicted"][name] for removal in written["removals"]] == values.tolist()
    singles, groups = said["choices"]
    assert "lds" not in singles["agreement"]["score"]
    lds = LinearDatamodelling.of(found.measured[1].predicted["score"], found.measured[1].true)
    assert groups["agreement"]["score"]["lds"] == lds.record()


def test_saving_writes_the_record_and_two_pictures(tmp_path: Path):
    found = validation()
    files = save(found, tmp_path / "run", settings={"a": [1, 2]})
    assert [path.name for path in files] == ["validate.json", "agreement.png", "estimators.png"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in files)
    text = files[0].read_text()
    assert json.loads(text) == record(found, {"a": [1, 2]})
    assert '"a": [1, 2]' in text, "numbers of a list on one line"
    for path in files[1:]:
        pixels = matplotlib.image.imread(path)
        assert min(pixels.shape[:2]) > 300
        assert len({tuple(pixel) for pixel in (pixels[::3, ::3, :3] * 255).astype(int).reshape(-1, 3).tolist()}) > 20


def test_a_folder_that_cannot_be_written_is_our_error(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ResultsError, match="cannot write"):
        save(validation(), tmp_path / "taken")


def test_without_matplotlib_the_record_is_written_and_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(StagetraceWarning, match=r"no plots: .* type: pip install 'stagetrace\[report\]'"):
        files = save(validation(), tmp_path)
    assert [path.name for path in files] == [path.name for path in tmp_path.iterdir()] == ["validate.json"]


@pytest.mark.parametrize("runs", [1, 3])
def test_the_first_estimator_is_drawn_against_the_truth(runs: int):
    found = validation(runs)
    figure: Any = plots.agreement(found)
    assert len(figure.axes) == 2
    for ax, each in zip(figure.axes, found.measured, strict=True):
        line, _, bars = ax.containers[0]
        agreement = each.agreement["score"]
        title = ax.get_title()
        assert title.startswith(each.choice)
        for word in (f"r {agreement.pearson_r:.4f}", f"Spearman {agreement.spearman_r:.4f}"):
            assert word in title
        assert f"slope {agreement.slope:.2f}" in title
        x, y = (torch.tensor(side) for side in line.get_data(orig=False))
        assert torch.allclose(x * 1e-3, each.predicted["score"])
        assert torch.allclose(y * 1e-3, each.true)
        assert len(bars) == (1 if runs > 1 else 0)
        if runs > 1:
            ends = torch.tensor([segment[:, 1].tolist() for segment in bars[0].get_segments()], dtype=torch.float64)
            error = each.effects.std(dim=0) / math.sqrt(runs)
            assert torch.allclose((ends[:, 1] - ends[:, 0]) * 1e-3 / 2, error)
        for label in (ax.get_xlabel(), ax.get_ylabel()):
            assert "query loss; - helps" in label
            assert "10^{-3}" in label
        assert any(abs(line.get_slope() - 1) < 1e-12 for line in ax.lines if hasattr(line, "get_slope"))


def test_without_a_unit_there_is_no_identity_line_and_no_slope():
    found = validation()
    units = {"ranking": None, **{name: unit for name, unit in UNITS.items() if name != "ranking"}}
    swapped = Validation(found.stage, found.measured, units, 1, 1.0, CONTROL, {})
    ax: Any = plots.agreement(swapped).axes[0]
    assert "slope -" in ax.get_title()
    assert "no unit" in ax.get_xlabel()
    assert not [line for line in ax.lines if hasattr(line, "get_slope")]


def test_the_estimators_are_drawn_with_their_intervals():
    found = validation()
    figure: Any = plots.estimators(found)
    for ax, each in zip(figure.axes, found.measured, strict=True):
        points = {line.get_ydata()[0]: line.get_xdata()[0] for line in ax.lines if line.get_marker() in ("o", "D")}
        assert points == {0: each.agreement["score"].spearman_r, 1: each.agreement["ranking"].spearman_r}
        ends = [tuple(segment[:, 0]) for lines in ax.collections for segment in lines.get_segments()]
        assert ends == [each.agreement[name].spearman_interval for name in ("score", "ranking")]
        assert [text.get_text() for text in ax.texts] == ["not defined"]


@pytest.mark.parametrize("scale", [1e-9, 1e6])
@pytest.mark.parametrize("draw", [plots.agreement, plots.estimators])
def test_no_words_of_a_picture_touch(draw: Any, scale: float):
    """Titles, labels and ticks of all panels, and that of the figure, lie apart and inside."""
    found = validation()
    scaled = tuple(measured_at(each, scale) for each in (*found.measured, *found.measured, found.measured[0]))
    figure = draw(Validation(found.stage, scaled, UNITS, 1, 1.0, CONTROL, {}))
    figure.set_dpi(100)
    figure.draw_without_rendering()
    texts = [figure._suptitle] if figure._suptitle else []
    for ax in figure.axes:
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = axis.get_major_ticks()
            texts += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    for place, (words, box) in enumerate(boxes):
        assert box.x0 >= 0, words
        assert box.y0 >= 0, words
        assert box.x1 <= figure.bbox.x1, words
        assert box.y1 <= figure.bbox.y1, words
        for others, other in boxes[place + 1 :]:
            assert not box.overlaps(other), (words, others)


def measured_at(each: Measured, scale: float) -> Measured:
    predicted = {name: scale * values for name, values in each.predicted.items()}
    return Measured(
        each.choice, each.removals, each.by, scale * each.effects, each.reliability, predicted, each.agreement
    )
