"""`cleansing` and the networks trained side by side, on small images."""

import shutil
from pathlib import Path

import pytest
import torch

from experiments.batched_stages import train_together
from experiments.cleansing import main_drops, random_order, shares_of
from experiments.networks import ConvNet, ConvNets
from experiments.training import Training, train_classifier
from stagetrace.progress import Silent
from tests.experiments.conftest import result_of

# Tiny stages are far from a minimum, and the trace says so.
pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")


@pytest.fixture(scope="module")
def out(call, photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "cleansing"
    assert call("cleansing", "--data", photos, "--out", folder, "--examples", 40) == 0
    return folder


@pytest.mark.slow
def test_every_seed_has_every_retraining(out):
    result = result_of(out)
    assert result["counts"]["pretrain"] == {"classes": [2, 6], "train": 40, "test": 16}
    assert [found["seed"] for found in result["seeds"]] == [0, 1]
    for found in result["seeds"]:
        left_out = {name: several[0]["left_out"] for name, several in found["models"].items()}
        assert [len(found["models"][f"{what} 10%"]) for what in ("harmful", "random", "helpful")] == [2, 2, 1]
        assert left_out["none"] == 0
        assert [left_out[f"{what} {share}%"] for what in ("harmful", "random") for share in (10, 30)] == [4, 12, 4, 12]
        assert left_out["helpful 10%"] == left_out["one model 10%"] == 4
        assert -1 <= found["agreement_of_scores_between_models"] <= 1
        for model in (model for several in found["models"].values() for model in several):
            parts = model["accuracy"]
            assert parts["whole"] == pytest.approx((parts["query"] + parts["measured"]) / 2)
            assert 0 <= parts["whole"] <= 100


@pytest.mark.slow
def test_differences_are_paired_by_seed(out):
    result = result_of(out)
    found = result["less_random"]["harmful 10%"]
    for what in ("accuracy", "loss"):
        for part in ("measured", "query", "whole"):
            each = [
                sum(model[what][part] for model in seed["models"]["harmful 10%"]) / 2
                - sum(model[what][part] for model in seed["models"]["random 10%"]) / 2
                for seed in result["seeds"]
            ]
            assert found[what][part]["each"] == pytest.approx(each)
            assert found[what][part]["mean"] == pytest.approx(sum(each) / 2)
            assert found[what][part]["low"] <= found[what][part]["mean"] <= found[what][part]["high"]
    assert result["less_none"]["helpful 10%"]["accuracy"]["measured"]["n"] == 2
    assert (out / "gains.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_killed_run_trains_no_model_twice(out, call, photos, tmp_path):
    copy = shutil.copytree(out, tmp_path / "copy")
    before = result_of(copy)
    weights = {path: path.stat().st_mtime_ns for path in copy.rglob("checkpoints/*.safetensors")}
    assert weights
    (copy / "result.json").unlink()
    shutil.rmtree(copy / "seed-1" / "run-1")
    assert call("cleansing", "--data", photos, "--out", copy, "--examples", 40) == 0
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert result_of(copy)["accuracy"] == before["accuracy"]


def test_harmful_are_the_largest_scores_and_random_are_known_before():
    drawn, scores = random_order(20, seed=7), torch.arange(20).double()
    left_out = main_drops(scores, -scores, drawn)
    assert left_out["harmful 10%"].tolist() == [19, 18]
    assert left_out["helpful 10%"].tolist() == [0, 1]
    assert left_out["one model 10%"].tolist() == [0, 1]
    assert torch.equal(left_out["random 10%"], main_drops(-scores, scores, random_order(20, seed=7))["random 10%"])
    assert set(left_out["random 10%"].tolist()) < set(shares_of(0.3, scores, drawn)["random 30%"].tolist())


class TestTogether:
    """`ConvNets` trained at once are `ConvNet`s trained one after another."""

    PLAN = Training(epochs=2, rate=1e-2, batch=16, weight_decay=1e-2, seed=4)

    @pytest.fixture
    def images(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(3, (40,), generator=generator)
        return torch.rand(40, 2, 13, 15, generator=generator).double() + labels[:, None, None, None], labels

    @staticmethod
    def networks() -> list[ConvNet]:
        torch.manual_seed(0)
        return [ConvNet((2, 13, 15), classes=3).double() for _ in range(3)]

    def test_same_weights_as_alone(self, images):
        pixels, labels = images
        together, alone = self.networks(), self.networks()
        several = ConvNets(together)
        torch.testing.assert_close(several(pixels)[1], alone[1](pixels))
        train_together(several, self.PLAN, pixels, labels, torch.ones(3, 40).double(), Silent())
        several.put_into(together)
        for one, other in zip(together, alone, strict=True):
            train_classifier(other, self.PLAN, pixels, labels)
            for left, right in zip(one.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(left, right)

    def test_an_example_of_weight_zero_is_not_seen(self, images):
        pixels, labels = images
        other = pixels.clone()
        other[5] += 10
        weights = torch.ones(3, 40).double()
        weights[0, 5] = 0
        results = []
        for some in (pixels, other):
            several = ConvNets(self.networks())
            train_together(several, self.PLAN, some, labels, weights, Silent())
            results.append(several(pixels))
        torch.testing.assert_close(results[0][0], results[1][0])
        assert not torch.allclose(results[0][1], results[1][1])

    def test_a_batch_is_the_mean_over_what_is_seen(self, images):
        """One step on a batch with some examples left out is one step on the batch of the others."""
        pixels, labels = images
        plan = Training(epochs=1, batch=40)
        kept = torch.arange(40) % 4 != 0
        network = self.networks()[0]
        several = ConvNets([network])
        train_classifier(network, plan, pixels[kept], labels[kept])
        train_together(several, plan, pixels, labels, kept[None].double(), Silent())
        torch.testing.assert_close(several(pixels)[0], network(pixels))
