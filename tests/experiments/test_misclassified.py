"""`misclassified` from end to end, on small images."""

import shutil
from pathlib import Path

import datasets
import pytest

from experiments import misclassified
from experiments.tasks import numbers_of, two_tasks
from tests.experiments.conftest import result_of

# Tiny stages are far from a minimum, and the trace says so.
pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")


@pytest.fixture(scope="module")
def out(call, photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "misclassified"
    assert call("misclassified", "--data", photos, "--out", folder, "--examples", 40) == 0
    return folder


@pytest.mark.slow
def test_each_mistake_is_a_query_of_its_own(out):
    found = result_of(out)["data_sets"]["cifar10"]
    queries = found["misclassified"]
    assert len(queries) == 3
    sure = [query["probability_of_what_was_said"] for query in queries]
    assert sure == sorted(sure, reverse=True)
    for query in queries:
        assert query["class"] != query["said"]
        assert {query["class"], query["said"]} <= {0, 1, 3, 4, 5, 7, 8, 9}
        scores = [row["score"] for row in query["most_harmful"]]
        assert scores == sorted(scores, reverse=True)
        assert query["mean_score_of_most_harmful"] == pytest.approx(sum(scores) / len(scores))
        assert query["mean_score_of_most_harmful"] > query["mean_score"]
    nature = found["most_harmful"]
    assert 0 < nature["images"] <= 3 * misclassified.BESIDE
    assert 0 <= nature["mean_share_of_all_with_less_loss"] <= 1
    assert (out / "cifar10.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_killed_run_trains_no_stage_twice(out, call, photos, tmp_path):
    copy = shutil.copytree(out, tmp_path / "copy")
    before = (copy / "result.json").read_text()
    weights = {path: path.stat().st_mtime_ns for path in copy.rglob("checkpoints/*.safetensors")}
    (copy / "result.json").unlink()
    assert call("misclassified", "--data", photos, "--out", copy, "--examples", 40) == 0
    assert len(weights) == 4  # of each stage, and where its Adam ended
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert (copy / "result.json").read_text() == before


def test_a_data_set_by_name(call, data, tmp_path, capsys):
    assert call("misclassified", "--data", data, "--dataset", "colours", "--out", tmp_path / "out") == 0
    found = result_of(tmp_path / "out")["data_sets"]
    assert list(found) == ["colours"]
    assert found["colours"]["counts"]["pretrain"]["classes"] == [0, 1]
    assert call("misclassified", "--data", tmp_path, "--out", tmp_path / "none") == 1
    assert "holds neither of cifar10, mnist" in capsys.readouterr().err


def test_classes_are_found_by_name(tmp_path, photos):
    names = ["frog", "car", "bird", "cat"]
    features = datasets.Features({"label": datasets.ClassLabel(names=names), "image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"label": [0], "image": [None]}, features=features)
    rows.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    assert numbers_of(tmp_path, {"bird": 7, "frog": 8}) == (0, 2)
    assert numbers_of(tmp_path, {"bird": 3, "whale": 1}) == (1, 3)
    assert numbers_of(photos / "cifar10", {"bird": 2, "frog": 6}) == (2, 6)


def test_some_classes_only(photos):
    _, others = two_tasks(photos / "cifar10", (2, 6))
    few = others.only((1, 4))
    assert few.classes == (1, 4)
    assert set(few.train.labels.tolist()) == {0, 1}
    assert few.train.rows[:4].tolist() == [1, 4, 11, 14]
