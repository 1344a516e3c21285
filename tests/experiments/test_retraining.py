"""The experiments that train again: `resolve`, `cifar-frozen`, `cifar-updated`, `choices`, on small images."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("datasets")
from experiments import choices, cifar_frozen, cifar_updated, mnist_frozen, resolve, small
from experiments.__main__ import main
from experiments.training import Training
from stagetrace.validation import Adam, Steps

# Tiny stages are far from a minimum, and the trace says so.
pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")

CUT = {
    "pretraining": Training(epochs=6, weight_decay=1e-2),
    "finetuning": Training(epochs=6, weight_decay=1e-2),
    "again": {"pretrain": 3, "finetune": 3},
    "rate": 1e-3,
    "orders": 2,
    "count": 3,
    "seeds": 1,
    "together": 3,
}


def call(*words: object) -> int:
    """The exit code of `python -m experiments WORDS`, everything cut short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["experiments", *map(str, words)])
        for module in (mnist_frozen, cifar_frozen, cifar_updated):
            patch.setattr(module, "PLAN", replace(module.PLAN, **CUT))
        patch.setattr(small, "DECAYS", (1e-1, 3e-2))
        patch.setattr(small, "HIDDEN", 4)
        patch.setattr(small, "INPUTS", 16)
        patch.setattr(resolve, "DATASETS", {"mnist": (0, 1, 2, 3)})
        patch.setattr(resolve, "SEEDS", 1)
        patch.setattr(resolve, "COUNT", 5)
        patch.setattr(resolve, "COLD", Steps(Adam(1e-2), steps=8, batch_size=20, start="cold", schedule="cosine"))
        patch.setattr(resolve, "COLD_RUNS", 2)
        patch.setattr(choices, "SIZES", (1e-1,))
        patch.setattr(choices, "SUBSETS", (20,))
        patch.setattr(choices, "ALPHAS", (0.01, 1.0))
        patch.setattr(choices, "ON", Steps(Adam(1e-3), steps=3, batch_size=20))
        patch.setattr(choices, "FROM_SCRATCH", Steps(Adam(1e-2), steps=8, batch_size=20, start="cold"))
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def result_of(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def solved_again(data, tmp_path_factory) -> Path:
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
    assert set(variants) == {"stages", "proximal 0.1", "proximal 0.01", "plain", "adam"}
    groups = variants["proximal 0.1"][0]["choices"]["5 groups of 0.5"]
    assert set(groups["lds"]) == set(groups["estimators"]) >= {"random", "gradient dot product", resolve.OURS}
    assert variants["adam"][0]["choices"]["5 groups of 0.1"]["reliability"]["runs"] == 2
    assert set(variants["stages"]) == {"0"}
    for name in ("agreement.png", "groups.png"):
        assert (solved_again / name).stat().st_size > 10_000


def test_a_second_call_trains_nothing_again(solved_again, data):
    kept = {path: path.stat().st_mtime_ns for path in solved_again.rglob("retrainings.jsonl")}
    before = result_of(solved_again)["summary"]
    assert call("resolve", "--data", data, "--out", solved_again, "--examples", 40) == 0
    assert kept
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert result_of(solved_again)["summary"] == before


@pytest.mark.parametrize("name", ["cifar-frozen", "cifar-updated"])
def test_the_paper_protocol_on_another_data_set(data, tmp_path, name):
    out = tmp_path / "out"
    assert call(name, "--data", data, "--dataset", "colours", "--out", out) == 0
    result = result_of(out)
    assert result["n"] == 3
    assert (result["alpha"] is None) == (name == "cifar-frozen")
    assert result["protocol"]["seeds"] == 1
    assert result["retraining"]["largest"]["reliability"]["n"] == 1
    trained = result["training"]["finetune"]["parameters"]
    whole = result["training"]["pretrain"]["parameters"]
    assert (trained > whole) == (name == "cifar-updated")  # three classes after two: a larger head, if all is trained


def test_choices_compares_everything_with_the_same_truth(data, tmp_path):
    out = tmp_path / "out"
    assert call("choices", "--data", data, "--dataset", "mnist", "--out", out, "--examples", 40) == 0
    tables = result_of(out)["tables"]
    assert set(tables["continued"]) == {"mnist-frozen", "cifar-frozen", "cifar-updated"}
    assert set(tables["minimum"]) == {
        f"mnist, {link}, {variant}" for link in ("frozen", "updated") for variant in ("plain", "proximal 0.1")
    }
    assert set(tables["adam"]) == {"mnist, frozen", "mnist, updated"}
    names = set(tables["continued"]["cifar-updated"]["3 largest"])
    assert {"alpha 0.01", "alpha 1.0", "H^2 + 0.1^2, then auto", "Gauss-Newton + 0.1"} <= names
    assert "polished, plain inverse" in tables["adam"]["mnist, frozen"]["5 largest"]
