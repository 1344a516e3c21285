"""The experiments that train again: `resolve`, `cifar-frozen`, `cifar-updated`, `choices`, on small images."""

from pathlib import Path

import pytest
import torch

from experiments.checkpoints import Checkpoints
from experiments.estimators import OURS
from experiments.settings import Settings
from experiments.tiny_chain import solved
from stagetrace.progress import Silent
from tests.experiments.conftest import result_of

# Tiny stages are far from a minimum, and the trace says so.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")]


@pytest.fixture(scope="module")
def solved_again(call, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "resolve"
    assert call("resolve", "--data", data, "--out", folder, "--examples", 40) == 0
    return folder


def test_tenths_are_predicted_where_a_pull_keeps_the_minimum(solved_again):
    summary = result_of(solved_again)["summary"]
    for link in ("frozen", "updated"):
        row = summary[f"mnist, {link}, proximal 0.1: 5 largest, 0.1 of each"]
        assert row["pearson_r"]["mean"] > 0.98
        assert 0.8 < row["slope"]["mean"] < 1.25
        assert row["n"] == 5
        assert row["pearson_r"]["n"] == 1  # seeds


def test_every_control_and_group_is_there(solved_again):
    result = result_of(solved_again)
    assert result["failed"] == {}
    variants = result["data_sets"]["mnist"]["frozen"]
    assert set(variants) == {"stages", "proximal 0.1", "plain", "adam"}
    groups = variants["proximal 0.1"][0]["choices"]["5 groups of 0.5"]
    assert set(groups["lds"]) == set(groups["estimators"]) >= {"random", "gradient dot product", OURS}
    assert variants["adam"][0]["choices"]["5 groups of 0.1"]["reliability"]["runs"] == 2
    assert set(variants["stages"]) == {"0"}
    for name in ("agreement.png", "groups.png"):
        assert (solved_again / name).stat().st_size > 10_000


def test_stages_that_were_solved_are_found(call, data, tmp_path):
    asked = Settings(data, tmp_path, examples=40), "mnist", (0, 1, 2, 3), Checkpoints(tmp_path), Silent()
    first = solved(*asked)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = solved(*asked)
    assert len(times) == 6  # three stages: weights and how their training went
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    for link, chain in first.items():
        assert again[link].facts == chain.facts
        for one, other in zip(chain.chain.stages, again[link].chain.stages, strict=True):
            assert one.weight_decay == other.weight_decay
            for left, right in zip(one.model.parameters(), other.model.parameters(), strict=True):
                assert torch.equal(left, right)


@pytest.mark.parametrize("name", ["cifar-frozen", "cifar-updated"])
def test_the_paper_protocol_on_another_data_set(call, data, tmp_path, name):
    out = tmp_path / "out"
    assert call(name, "--data", data, "--dataset", "colours", "--out", out) == 0
    result = result_of(out)
    assert result["n"] == 3
    assert result["asked"]["dataset"] == "colours"
    assert result["counts"]["pretrain"] == {"classes": [0, 1], "train": 24, "test": 10}
    assert result["counts"]["finetune"] == {"classes": [2, 3, 4], "train": 36, "test": 15}
    assert (result["alpha"] is None) == (name == "cifar-frozen")
    assert result["protocol"]["seeds"] == 1
    assert result["retraining"]["largest"]["reliability"]["n"] == 1
    trained = result["training"]["finetune"]["parameters"]
    whole = result["training"]["pretrain"]["parameters"]
    assert (trained > whole) == (name == "cifar-updated")  # three classes after two: a larger head, if all is trained


def test_choices_compares_everything_with_the_same_truth(call, data, tmp_path):
    out = tmp_path / "out"
    assert call("choices", "--data", data, "--dataset", "mnist", "--out", out, "--examples", 40) == 0
    tables = result_of(out)["tables"]
    assert set(tables["continued"]) == {"mnist-frozen", "cifar-frozen", "cifar-updated"}
    assert set(tables["minimum"]) == {
        f"mnist, {link}, {variant}" for link in ("frozen", "updated") for variant in ("plain", "proximal 0.1")
    }
    assert set(tables["adam"]) == {"mnist, frozen", "mnist, updated"}
    names = set(tables["continued"]["cifar-updated"]["3 largest"])
    assert {"alpha 1.0", "H^2 + 0.1^2, then auto", "Gauss-Newton + 0.1"} <= names
    assert "polished, plain inverse" in tables["adam"]["mnist, frozen"]["5 largest"]
