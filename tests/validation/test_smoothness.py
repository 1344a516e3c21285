"""How far a derivative is said to reach, against how far it does."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from stagetrace import Chain, Unrolled, trace
from stagetrace.checks import Level
from stagetrace.errors import DescriptionError
from stagetrace.progress import Silent
from stagetrace.validation import SGD as SGDSteps
from stagetrace.validation import GroupRemovals, Random, Steps, validate
from stagetrace.validation.smoothness import Tried, drawn, drawn_by_size, findings_of_smoothness, smoothness
from tests.replay.runs import Run, Stages

SGD, Adam = torch.optim.SGD, torch.optim.Adam
SMOOTH = Stages((Run(partial(SGD, lr=0.02)), Run(partial(SGD, lr=0.02))), (20, 12))
ROUGH = Stages((Run(partial(Adam, lr=0.3), epochs=6), Run(partial(Adam, lr=0.3), epochs=4)), (20, 12))


def test_a_smooth_training_is_told_from_a_rough_one(tmp_path: Path):
    """What is measured is the query loss after training really run again; small steps are nearly linear in weights."""
    smooth, rough = (
        smoothness(stages.chain(tmp_path / name), stages.query(), "stage0", shares=(0.2,))
        for name, stages in (("smooth", SMOOTH), ("rough", ROUGH))
    )
    for stages, found in ((SMOOTH, smooth), (ROUGH, rough)):
        before = float(stages.losses({}).mean())
        for tried in found.tried:
            removals = drawn(20, tried.size, 4, seed=0)
            if tried.size == 1:
                effects = -trace(stages.chain(tmp_path / f"{tried.size}"), stages.query("mean"))["stage0"].values / 20
                removals = drawn_by_size(effects, 4, seed=0)
                assert tried.predicted == pytest.approx([float(effects[index]) for (index,) in removals])
            for removed, measured in zip(removals[:2], tried.measured[:2], strict=True):
                weights = torch.ones(20, dtype=torch.float64)
                weights[list(removed)] = 0
                assert measured == pytest.approx(float(stages.losses({0: weights}).mean()) - before, rel=1e-9)
    assert [tried.size for tried in smooth.tried] == [4]  # it held, so that smaller groups were not tried
    assert smooth.tried[0].error < 0.1 * smooth.tried[0].spread
    assert [tried.size for tried in rough.tried] == [4, 1]
    assert rough.tried[0].expected < 0.5 < 0.99 < smooth.tried[0].expected
    assert (smooth.finding.level, rough.finding.level) == (Level.OK, Level.WARNING)
    assert (smooth.holds_for, rough.holds_for) == (4, 0)
    assert smooth.finding.text.startswith("scores hold for up to 4 examples of 20 removed at random")
    assert "smaller rates" in rough.finding.text


def test_the_expected_correlation_is_that_of_errors_beside_the_spread():
    """Measured = predicted + error, errors independent of predictions: simulated, and by the formula."""
    generator = torch.Generator().manual_seed(0)
    predicted = 2.0 * torch.randn(100_000, generator=generator, dtype=torch.float64)
    measured = predicted + 1.5 * torch.randn(100_000, generator=generator, dtype=torch.float64)
    found = Tried(100, tuple(predicted.tolist()), tuple(measured.tolist()), spread=2.0)
    true = float(torch.corrcoef(torch.stack([predicted, measured]))[0, 1])
    assert found.expected == pytest.approx(true, abs=0.01)
    assert found.at_least == pytest.approx(true, abs=0.02)  # so many leave no doubt


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_what_is_at_least_to_be_expected_is_less_than_the_truth_as_often_as_said(groups: int):
    """A thousand checks of a training whose scores correlate at 0.8: about a tenth promise more."""
    generator, promised = torch.Generator().manual_seed(0), list[bool]()
    for _ in range(1000):
        predicted = torch.randn(groups, generator=generator, dtype=torch.float64)
        measured = predicted + 0.75 * torch.randn(groups, generator=generator, dtype=torch.float64)
        found = Tried(100, tuple(predicted.tolist()), tuple(measured.tolist()), spread=1.0)
        promised.append(found.at_least > 0.8)
    assert 0.02 < sum(promised) / 1000 < 0.125  # below a tenth where groups fall together by chance


def test_of_single_examples_those_count_by_which_effects_differ():
    """Most effects are tiny and right, a few are large and half as large as was said: r over all, and as expected."""
    generator = torch.Generator().manual_seed(0)
    effects = torch.randn(4000, generator=generator, dtype=torch.float64) ** 5
    true = torch.where(effects.abs() > 20, 0.3 * effects + 0.2 * effects.abs(), effects)
    r = float(torch.corrcoef(torch.stack([effects, true]))[0, 1])
    spread, found = float(effects.std()), list[float]()
    for seed in range(50):
        chosen = [index for (index,) in drawn_by_size(effects, 8, seed)]
        said, measured = effects[chosen].tolist(), true[chosen].tolist()
        weights = tuple((spread / each) ** 2 for each in said)
        found.append(Tried(1, tuple(said), tuple(measured), spread, weights).expected)
    assert r < 0.9
    assert sum(found) / 50 == pytest.approx(r, abs=0.06)
    alike = Tried(1, tuple(effects[1:9].tolist()), tuple(true[1:9].tolist()), spread)
    assert alike.expected > 0.999  # what eight at random may promise


def test_no_group_is_tried_twice():
    for size, count, there in ((1, 4, 3), (2, 4, 3), (1, 2, 2)):
        found = drawn(3, size, count, seed=0)
        assert len(set(found)) == len(found) == there
        assert all(len(set(group)) == size and set(group) <= {0, 1, 2} for group in found)


def test_a_stage_that_the_library_trains_is_tried_by_its_own_steps(tmp_path: Path):
    """What is measured is what `validate` measures of the same steps."""
    first, second = SMOOTH.chain(tmp_path).stages
    steps = Steps(SGDSteps(0.02), steps=8, batch_size=5, start="cold")
    chain = Chain(
        replace(first, link=Unrolled(recording=steps, seeds=(3, 4))),
        replace(second, link=Unrolled("body", steps, seeds=(3, 4))),
    )
    query = SMOOTH.query("mean")
    found = smoothness(chain, query, "stage0", shares=(0.2,), seed=1)
    choices = [GroupRemovals(0.2, 4, seed=1)]
    again = validate(chain, query, stage="stage0", seeds=(3,), choices=choices, estimators=[Random()], processes=1)
    assert found.tried[0].measured == pytest.approx(again.measured[0].true.tolist(), rel=1e-9)
    assert found.tried[0].expected > 0.95


def test_scores_that_are_known_are_not_computed_again(tmp_path: Path):
    chain, query = SMOOTH.chain(tmp_path), SMOOTH.query()
    known = trace(chain, query, of="stage0")["stage0"]
    found = smoothness(chain, query, "stage0", scores=known, groups=2)
    assert found.tried[0].predicted == pytest.approx(
        [-float(known.per_example[list(group)].sum()) / 20 for group in drawn(20, 2, 2, seed=0)]
    )
    with pytest.raises(DescriptionError, match="the scores are of 20 examples, stage 'stage1' has 12"):
        smoothness(chain, query, "stage1", scores=known)


def test_settings_out_of_range_are_refused(tmp_path: Path):
    chain, query = SMOOTH.chain(tmp_path), SMOOTH.query()
    for shares in ((1.0,), (0.0,), (), 0.1):
        with pytest.raises(
            DescriptionError, match=r"shares must be numbers above 0 and below 1, such as \(0.1, 0.02\), got "
        ):
            smoothness(chain, query, "stage0", shares=shares)  # type: ignore[arg-type]
    with pytest.raises(
        DescriptionError, match=r"scores must be those of a trace, trace\(...\)\['stage0'\], got a list"
    ):
        smoothness(chain, query, "stage0", scores=[0.0] * 20)  # type: ignore[arg-type]
    with pytest.raises(DescriptionError, match="groups"):
        smoothness(chain, query, "stage0", groups=0)


def test_what_is_not_recorded_cannot_be_repeated(tmp_path: Path):
    first, _ = SMOOTH.chain(tmp_path).stages
    bare = Chain(type(first)("stage0", model=first.model, objective=first.objective, data=first.data))
    with pytest.raises(DescriptionError, match="'stage0' is not recorded, so it cannot be repeated"):
        smoothness(bare, SMOOTH.query(), "stage0")
    with pytest.raises(DescriptionError, match="nothing can be repeated"):
        list(findings_of_smoothness(bare, SMOOTH.query(), Silent()))


def test_each_stage_that_can_be_repeated_has_a_verdict(tmp_path: Path):
    found = list(findings_of_smoothness(SMOOTH.chain(tmp_path), SMOOTH.query(), Silent()))
    assert [(each.where, each.what) for each in found] == [("stage0", "smoothness"), ("stage1", "smoothness")]
