"""`misclassified` from end to end, on small images."""

import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("scipy")
from experiments import misclassified
from experiments.__main__ import main
from experiments.tasks import numbers_of, two_tasks
from experiments.training import Training
from stagetrace import Lanczos

# Tiny stages are far from a minimum, and the trace says so.
pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")


def call(*words: object) -> int:
    """The exit code of `python -m experiments WORDS`, its training cut short so that mistakes are left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["experiments", *map(str, words)])
        patch.setattr(misclassified, "PRETRAINING", Training(epochs=4, batch=32))
        patch.setattr(misclassified, "FINETUNING", Training(epochs=1, batch=32))
        patch.setattr(misclassified, "SOLVERS", dict.fromkeys(("pretrain", "finetune"), Lanczos(0.1, max_steps=20)))
        patch.setattr(misclassified, "QUERIES", 3)
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def out(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "misclassified"
    assert call("misclassified", "--data", photos, "--out", folder, "--examples", 40) == 0
    return folder


def test_each_mistake_is_a_query_of_its_own(out):
    found = json.loads((out / "result.json").read_text())["data_sets"]["cifar10"]
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


def test_a_killed_run_trains_no_stage_twice(out, photos, tmp_path):
    copy = shutil.copytree(out, tmp_path / "copy")
    before = (copy / "result.json").read_text()
    weights = {path: path.stat().st_mtime_ns for path in copy.rglob("checkpoints/*.safetensors")}
    (copy / "result.json").unlink()
    assert call("misclassified", "--data", photos, "--out", copy, "--examples", 40) == 0
    assert len(weights) == 2
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert (copy / "result.json").read_text() == before


def test_a_data_set_by_name(data, tmp_path, capsys):
    assert call("misclassified", "--data", data, "--dataset", "colours", "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text())["data_sets"]
    assert list(found) == ["colours"]
    assert found["colours"]["counts"]["pretrain"]["classes"] == [0, 1]
    assert call("misclassified", "--data", tmp_path, "--out", tmp_path / "none") == 1
    assert "holds neither of cifar10, mnist" in capsys.readouterr().err


def test_classes_are_found_by_name(tmp_path, photos):
    import datasets

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
