"""`similarity` and `finetune-size` from end to end, on small images."""

import shutil
from pathlib import Path

import pytest

from experiments.records import format_interval, over_seeds, ratio_over_seeds
from tests.experiments.conftest import result_of

# Tiny stages are far from a minimum, and the trace says so.
pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")


@pytest.fixture(scope="module")
def out(call, photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "similarity"
    assert call("similarity", "--data", photos, "--out", folder, "--examples", 40) == 0
    return folder


@pytest.mark.slow
def test_tasks_are_those_of_the_paper(out):
    counts = result_of(out)["counts"]
    assert counts["pretrain"] == {"classes": [2, 6], "train": 40, "test": 16}
    assert counts["A"]["classes"] == [2, 6]
    assert counts["B"]["classes"] == [1, 4]
    assert counts["A"]["train"] == counts["B"]["train"] == 40


@pytest.mark.slow
def test_scores_are_compared_seed_by_seed(out):
    result = result_of(out)
    sizes, of_sums = result["mean_absolute"], result["mean_absolute_of_sums"]
    assert [found["seed"] for found in result["seeds"]] == [0, 1]
    for name in ("A", "B"):
        each = [found[name]["mean_absolute"] for found in result["seeds"]]
        assert min(each) > 0
        assert sizes[name]["each"] == each
        assert sizes[name]["low"] < sizes[name]["mean"] < sizes[name]["high"]
        assert sizes[name]["mean"] == pytest.approx(sum(each) / 2)
        assert of_sums[name]["mean"] == pytest.approx(16 * sizes[name]["mean"])
    ratio = sizes["A over B"]
    assert ratio["each"][0] == pytest.approx(sizes["A"]["each"][0] / sizes["B"]["each"][0])
    assert ratio["low"] < ratio["mean"] < ratio["high"]
    assert (out / "scores.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_killed_run_trains_no_stage_twice(out, call, photos, tmp_path):
    copy = shutil.copytree(out, tmp_path / "copy")
    before = result_of(copy)
    weights = {path: path.stat().st_mtime_ns for path in copy.rglob("*.safetensors") if "checkpoints" in path.parts}
    assert len(weights) == 12  # of each stage, and where its Adam ended
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "seed-1" / "run-B")
    assert call("similarity", "--data", photos, "--out", copy, "--examples", 40) == 0
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert result_of(copy)["mean_absolute"] == before["mean_absolute"]


@pytest.mark.slow
def test_three_times_the_examples(call, data, tmp_path):
    out = tmp_path / "out"
    assert call("finetune-size", "--data", data, "--dataset", "colours", "--out", out, "--seed", 5) == 0
    result = result_of(out)
    assert result["counts"]["pretrain"]["classes"] == [0, 1]
    assert result["counts"]["C"] == {"classes": [2, 3, 4], "train": 12, "test": 15}
    assert result["counts"]["D"] == {"classes": [2, 3, 4], "train": 36, "test": 15}
    assert [found["seed"] for found in result["seeds"]] == [5, 6]
    assert all(found[name]["mean_absolute"] > 0 for found in result["seeds"] for name in "CD")
    assert result["alpha"] == {"C": 0.01, "D": 0.01}
    assert "C over D" in result["mean_absolute"]


def test_intervals_are_those_of_students_t():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["high"] - 2 == pytest.approx(4.302653 / 3**0.5)  # t(0.975, 2 degrees of freedom), standard deviation 1
    assert over_seeds([1.0])["low"] is None
    ratio = ratio_over_seeds([2.0, 8.0], [1.0, 1.0])
    assert ratio["mean"] == pytest.approx(4.0)
    assert ratio["low"] * ratio["high"] == pytest.approx(16.0)
    assert "one seed" in format_interval(over_seeds([1.0]))
