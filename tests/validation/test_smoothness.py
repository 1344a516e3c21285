"""How far a derivative is said to reach, against how far it does."""

from functools import partial
from pathlib import Path

import pytest
import torch

from stagetrace import Chain
from stagetrace.checks import Level
from stagetrace.errors import DescriptionError
from stagetrace.progress import Silent
from stagetrace.validation.smoothness import Smoothness, findings_of_smoothness, smoothness
from tests.replay.runs import Run, Stages

SGD, Adam = torch.optim.SGD, torch.optim.Adam
SMOOTH = Stages((Run(partial(SGD, lr=0.02)), Run(partial(SGD, lr=0.02))), (20, 12))
ROUGH = Stages((Run(partial(Adam, lr=0.3), epochs=12), Run(partial(Adam, lr=0.3), epochs=8)), (20, 12))


def test_a_smooth_training_is_told_from_a_rough_one(tmp_path: Path):
    """What is measured is the query loss after training really run again; small steps are nearly linear in weights."""
    smooth, rough = (
        smoothness(stages.chain(tmp_path / name), stages.query(), "stage0", share=0.2)
        for name, stages in (("smooth", SMOOTH), ("rough", ROUGH))
    )
    for stages, found in ((SMOOTH, smooth), (ROUGH, rough)):
        weights = torch.ones(20, dtype=torch.float64)
        before = float(stages.losses({}).mean())
        removed = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:4]
        weights[removed] = 0
        assert found.measured[0] == pytest.approx(float(stages.losses({0: weights}).mean()) - before, rel=1e-9)
    assert smooth.error < 0.1 * smooth.spread
    assert rough.correlation() < 0.5 < 0.99 < smooth.correlation()
    assert (smooth.finding.level, rough.finding.level) == (Level.OK, Level.WARNING)
    assert smooth.holds_for == 4 > rough.holds_for
    assert "a larger epsilon of the optimiser" in rough.finding.text


def test_the_expected_correlation_is_that_of_errors_beside_the_spread():
    """Measured = predicted + error, errors independent of predictions: simulated, and by the formula."""
    generator = torch.Generator().manual_seed(0)
    predicted = 2.0 * torch.randn(100_000, generator=generator, dtype=torch.float64)
    measured = predicted + 1.5 * torch.randn(100_000, generator=generator, dtype=torch.float64)
    found = Smoothness("a", 1000, 100, tuple(predicted.tolist()), tuple(measured.tolist()), spread=2.0)
    assert found.correlation() == pytest.approx(
        float(torch.corrcoef(torch.stack([predicted, measured]))[0, 1]), abs=0.01
    )
    assert found.correlation(found.holds_for) >= 0.95 > found.correlation(found.holds_for + 1)


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
