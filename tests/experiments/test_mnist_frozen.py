"""The experiment `mnist-frozen` from end to end, on a data set of a few hundred small images."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import paper
from experiments.estimators import DEFAULT, GAUSS_NEWTON, IDENTITY
from experiments.images import read_images
from experiments.records import of_trace
from stagetrace import Solution, Trace, trace
from stagetrace.errors import DataError, StagetraceError
from stagetrace.solvers import Equation, Shift
from stagetrace.solvers.base import Status
from stagetrace.solvers.system import Spectrum
from tests.experiments.conftest import result_of

ROOT = Path(__file__).parents[2]
# Tiny stages are far from a minimum, and the trace says so.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")]


@pytest.fixture(scope="module")
def out(call, data, tmp_path_factory) -> Path:
    """A finished run; it is read here and continued in copies."""
    folder = tmp_path_factory.mktemp("out") / "digits"
    assert call("mnist-frozen", "--data", data, "--out", folder, "--examples", 50) == 0
    return folder


@pytest.fixture
def copy(out, tmp_path) -> Path:
    return shutil.copytree(out, tmp_path / "copy")


def test_result_says_what_was_done(out):
    result = result_of(out)
    assert result["experiment"] == "mnist-frozen"
    assert result["asked"] == {"seed": 0, "examples": 50, "dataset": None}
    assert result["counts"] == {
        "pretrain": {"classes": [0, 1, 2, 3], "train": 50, "test": 32},
        "finetune": {"classes": [4, 5, 6, 7, 8, 9], "train": 50, "test": 48},
    }
    assert result["training"]["pretrain"]["parameters"] == 11_780
    assert result["training"]["finetune"]["parameters"] == 8_422
    for said in result["training"].values():
        assert said["gradient_norm"] > 0
        assert 0 <= said["test"]["accuracy"] <= 1
        assert said["train"]["loss"] > 0
    assert "+ 0.01 I" in result["solving"]["pretrain"]["system"]
    assert "+ 1e-08 I" in result["solving"]["finetune"]["system"]
    for solved in result["solving"].values():
        assert solved["converged"] == (solved["relative_residual"] <= solved["asked_for"])
        assert solved["products"] > 0
        assert solved["smallest_ritz_value"] < solved["largest_ritz_value"]
    assert result["seconds"]["forward_pass_over_pretraining_examples"] > 0
    assert set(result) >= {"sign", "unit", "alpha", "warnings", "retraining", "versions", "hardware"}


def test_result_names_no_place_on_this_machine(out, data):
    written = "".join(path.read_text() for path in (out / "result.json", *(out / "checkpoints").glob("*.json")))
    assert str(data) not in written
    assert str(out) not in written


def test_scores_in_the_result_are_those_of_the_run(out):
    scores = Trace.load(out / "run")["pretrain"]
    said = result_of(out)["scores"]["pretrain"]
    assert [row["index"] for row in said["most_harmful"]] == list(scores.top(20).indices)
    assert said["most_helpful"][0]["score"] == pytest.approx(scores.values.min().item())
    assert said["most_helpful"][0]["removal_effect"] == pytest.approx(-scores.values.min().item() / 50)
    assert (out / "scores.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_killed_run_trains_no_stage_twice_and_ends_with_the_same_scores(copy, call, data):
    weights = {
        path: path.stat().st_mtime_ns
        for path in (copy / "checkpoints").glob("*.safetensors")
        if path.name != "examples.safetensors"
    }
    before = result_of(copy)
    shutil.rmtree(copy / "run")
    (copy / "result.json").unlink()
    assert call("mnist-frozen", "--data", data, "--out", copy, "--examples", 50) == 0
    assert len(weights) == 4  # of each stage, and where its Adam ended
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert result_of(copy)["scores"] == before["scores"]
    assert result_of(copy)["training"] == before["training"]


def test_a_solve_that_fell_short_and_negative_curvature_are_told():
    fine = Solution(
        torch.zeros(1), Equation(Shift()), (1e-6,), 3, 1, 3, (Status.CONVERGED,), 1e-4, Spectrum((0.0, 2.0))
    )
    short = replace(fine, relative_residuals=(0.5,), statuses=(Status.MAX_STEPS,), spectrum=Spectrum((-0.1, 2.0)))
    either: dict[str, Any] = dict.fromkeys(("pretrain", "finetune"))
    assert of_trace(Trace({}, {"pretrain": fine}), either, either)["warnings"] == []
    first, second = of_trace(Trace({}, {"pretrain": short, "finetune": fine}), either, either)["warnings"]
    assert first.startswith(
        "stage 'pretrain': H x = b stopped at the step limit: relative residual 5.0e-01, asked for 1.0e-04"
    )
    assert "'pretrain': the curvature has negative eigenvalues (down to -1.00e-01" in second


def test_the_comparison_with_retraining(out):
    result = result_of(out)
    largest, drawn = (result["retraining"][choice] for choice in ("largest", "random"))
    assert result["n"] == largest["n"] == drawn["n"] == 4
    assert result["pearson_r"] == largest["estimators"][GAUSS_NEWTON]["pearson_r"]["mean"]
    assert result["slope"] == largest["estimators"][GAUSS_NEWTON]["slope"]["mean"]
    low, high = result["interval"]
    assert low <= result["pearson_r"] <= high
    assert result["noise_floor"] > 0
    assert set(largest["estimators"]) >= {paper.OURS, paper.PAPERS, IDENTITY, "random"}
    assert [seed["seed"] for seed in result["retraining"]["each_seed"]] == [0, 1]
    assert (out / "agreement.png").stat().st_size > 10_000


def test_effects_are_differences_to_a_control_of_the_same_batches(out):
    written = (out / "retrained" / "seed-0" / "retrainings.jsonl").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    assert {line["seed"] for line in lines} == {0, 1}  # two orders of the batches
    assert all(0 < abs(line["loss"] - line["control"]) < 0.1 for line in lines)
    assert len({(line["seed"], line["control"]) for line in lines}) < len(lines)


@pytest.mark.slow
def test_the_identity_has_the_truth_of_the_same_folder(copy, call, data):
    before = (copy / "retrained" / "seed-0" / "retrainings.jsonl").read_text()
    truth = result_of(copy)
    assert call("identity-ablation", "--data", data, "--out", copy, "--examples", 50) == 0
    assert (copy / "retrained" / "seed-0" / "retrainings.jsonl").read_text() == before
    result = result_of(copy)
    assert result["experiment"] == "identity-ablation"
    assert result["estimator"] == IDENTITY
    compared = result["retraining"]["largest"]["estimators"]
    assert set(compared) == {paper.OURS, DEFAULT, paper.PAPERS, IDENTITY}
    assert compared.items() <= truth["retraining"]["largest"]["estimators"].items()
    assert result["pearson_r"] == truth["retraining"]["largest"]["estimators"][IDENTITY]["pearson_r"]["mean"]


@pytest.mark.parametrize("changed", [("--seed", 1), ("--examples", 40)])
def test_other_settings_in_the_same_folder_are_refused(copy, call, data, capsys, changed):
    before = (copy / "result.json").read_text()
    words = {"--data": data, "--out": copy, "--examples": 50} | dict([changed])
    assert call("mnist-frozen", *(word for pair in words.items() for word in pair)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "other settings" in error
    assert (copy / "result.json").read_text() == before


def test_wrong_usage(call, data, tmp_path, capsys):
    assert call("no-such-thing", "--data", data, "--out", tmp_path) == 2
    assert "mnist-frozen" in capsys.readouterr().err
    assert call("mnist-frozen", "--data", tmp_path / "nowhere", "--out", tmp_path) == 2
    assert call("mnist-frozen", "--data", data, "--out", tmp_path, "--device", "abacus") == 2
    assert call("mnist-frozen", "--out", tmp_path) == 2


def test_images_are_read_as_they_are(data):
    grey, colour = read_images(data / "mnist", "test"), read_images(data / "colours", "train")
    assert grey.pixels.shape == (80, 1, 28, 28)
    assert colour.pixels.shape == (60, 3, 15, 17)
    assert grey.pixels.max() == 1
    assert colour.labels[:6].tolist() == [0, 1, 2, 3, 4, 0]


def test_what_cannot_be_read_is_said(data, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        read_images(data / "nothing", "train")
    with pytest.raises(DataError, match="it has 'train', 'test'"):
        read_images(data / "mnist", "validation")
    with pytest.raises(DataError, match="not a data set"):
        read_images(tmp_path, "train")


class TestExample:
    """`examples/mnist.py`: what a user writes to trace the same checkpoints."""

    @pytest.fixture
    def job(self):
        spec = importlib.util.spec_from_file_location("mnist_example", ROOT / "examples" / "mnist.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.job

    def test_scores_are_those_of_the_experiment(self, job, out, data, monkeypatch):
        monkeypatch.setenv("STAGETRACE_MNIST_DATA", str(data / "mnist"))
        monkeypatch.setenv("STAGETRACE_MNIST_CHECKPOINTS", str(out / "checkpoints"))
        chain, query, options = job()
        mine, theirs = trace(chain, query, **options), Trace.load(out / "run")
        for stage in ("pretrain", "finetune"):
            torch.testing.assert_close(mine[stage].values, theirs[stage].values)

    def test_says_what_is_not_set(self, job, data, tmp_path, monkeypatch):
        monkeypatch.delenv("STAGETRACE_MNIST_DATA", raising=False)
        with pytest.raises(StagetraceError, match="STAGETRACE_MNIST_DATA is not set"):
            job()
        monkeypatch.setenv("STAGETRACE_MNIST_DATA", str(data / "mnist"))
        monkeypatch.delenv("STAGETRACE_MNIST_CHECKPOINTS", raising=False)
        with pytest.raises(StagetraceError, match="STAGETRACE_MNIST_CHECKPOINTS is not set"):
            job()
