"""Stages that the library trains itself: scores are exact for the steps that a retraining takes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stagetrace import Chain, Frozen, Proximal, Trace, Unrolled, trace
from stagetrace.errors import DescriptionError, StagetraceWarning
from stagetrace.results import Scores
from stagetrace.tracing.ensemble import mean_scores, order_weights
from stagetrace.validation import SGD, Adam, Steps
from stagetrace.validation.estimators.exact_steps import ExactSteps
from stagetrace.validation.retrain import Retraining
from tests.replay.runs import Stages
from tests.replay.test_scores import CASES

STAGES = CASES["sgd"]
BY = 1e-4


@pytest.fixture(scope="module", params=["kept", "moved"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Two stages as training left them, described in the idealised way."""
    stages = CASES["nesterov-then-kept"] if request.param == "kept" else STAGES
    first, second = stages.chain(tmp_path_factory.mktemp("runs")).stages
    link = Frozen("body") if request.param == "kept" else Proximal("body")
    return Chain(replace(first, link=None, weight_decay=0.05), replace(second, link=link, weight_decay=0.02))


def fits(chain: Chain) -> dict[str, Steps]:
    return {chain.names[0]: Steps(Adam(1e-2), 12, 4, schedule="cosine"), chain.names[1]: Steps(SGD(0.1, 0.5), 9, 4)}


@pytest.mark.parametrize("stage", ["stage0", "stage1"])
def test_scores_are_the_slopes_of_the_retraining(chain: Chain, stage: str):
    """To first order: both the derivative and a removal of a ten-thousandth are of the same copies, batch by batch."""
    query = STAGES.query()
    effects = ExactSteps(fits(chain), seeds=(3,)).removal_effects(chain, query, stage)
    again = Retraining(chain, query, stage, fits(chain))
    examples = [(0,), (5,), (9,)]
    control, *found = again.losses([(), *examples], BY, 3)
    half, *halves = again.losses([(), *examples], BY / 2, 3)
    for (index,), whole, part in zip(examples, found, halves, strict=True):
        slope = (4 * (part - half) - (whole - control)) / BY  # one-sided, extrapolated
        assert torch.allclose(effects[:, index], slope, rtol=0, atol=1e-6 * float(effects.abs().max()))


def test_orders_of_the_batches_are_averaged(chain: Chain, tmp_path: Path):
    query = STAGES.query("mean")
    one, other, both = (
        ExactSteps(fits(chain), seeds).removal_effects(chain, query, "stage1") for seeds in ((0,), (1,), (0, 1))
    )
    assert not torch.allclose(one, other)
    small, large = sorted((one, other), key=lambda each: float(each.norm()))
    share = float(small.norm() / large.norm())  # of two orders the smaller one is the lower median
    torch.testing.assert_close(both, (small + share * large) / (1 + share))


def test_an_order_counts_for_no_more_than_the_median_one():
    alike = [torch.tensor([3.0, 4.0]), torch.tensor([5.0, 0.0]), torch.tensor([0.0, 5.0])]
    rough = torch.tensor([60.0, -80.0])
    of_first = torch.stack([*alike, rough])
    weights = order_weights(of_first)
    assert torch.allclose(weights[:, 0], torch.tensor([1.0, 1.0, 1.0, 0.05]).double() / 3.05)
    assert torch.allclose(order_weights(of_first[:3]), torch.tensor(1 / 3).double())
    # each query has weights of its own, and orders that are zero everywhere divide by nothing
    several = torch.stack([of_first, torch.zeros_like(of_first)], dim=1)
    assert torch.allclose(order_weights(several)[:, 0], weights)
    assert torch.allclose(order_weights(several)[:, 1], torch.tensor(0.25).double())


def test_a_rough_order_is_named():
    scores = [Scores("stage0", torch.tensor([1.0, -1.0]).double() * size) for size in (1.0, 8.0, 1.1)]
    with pytest.warns(StagetraceWarning, match=r"stage 'stage0': .*7.27 times with seed 5"):
        mean = mean_scores(scores, (4, 5, 6))
    torch.testing.assert_close(mean.values, torch.tensor([3.2, -3.2]).double() / (1 + 1.1 / 8 + 1))


def trained(stages: Stages, folder: Path, seeds: tuple[int, ...] = (0, 1), second: bool = True) -> Chain:
    made = stages.chain(folder / "runs").stages
    steps = Steps(Adam(1e-2), 5, 4)
    links = Unrolled((), steps, seeds), Unrolled("body", steps, seeds) if second else Proximal("body")
    return Chain(*(replace(stage, link=link) for stage, link in zip(made, links, strict=True)))


def test_a_run_is_kept_and_found_again(tmp_path: Path):
    chain = trained(STAGES, tmp_path)
    result = trace(chain, STAGES.query("mean"), out=tmp_path / "run")
    assert "mean over 2 orders of the batches, whose scores correlate at r" in result.solutions["stage0"].notes[0]
    assert torch.equal(Trace.load(tmp_path / "run")["stage0"].values, result["stage0"].values)
    assert torch.equal(
        trace(chain, STAGES.query("mean"), out=tmp_path / "run")["stage1"].values, result["stage1"].values
    )


def test_what_comes_after_must_be_trained_too(tmp_path: Path):
    with pytest.raises(DescriptionError, match=r"'stage1' comes after 'stage0', which is trained again"):
        trace(trained(STAGES, tmp_path, second=False), STAGES.query())


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_are_one_or_more_different_numbers(seeds: tuple[int, ...]):
    with pytest.raises(DescriptionError, match="seeds must be one or more different"):
        Unrolled("body", Steps(Adam(), 1, 1), seeds)


def test_training_starts_from_a_stage_before_that_is_not_trained_again(tmp_path: Path):
    """Its values are taken over, whatever the stage's own were."""
    first, second = STAGES.chain(tmp_path / "runs").stages
    again = replace(second, link=Unrolled("body", Steps(Adam(1e-2), 5, 4)))
    result = trace(Chain(first, again), STAGES.query("mean"))
    assert bool(result["stage0"].values.any())
