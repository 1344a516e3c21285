"""Trainings repeated with weights on the examples, and differentiated there: against the loop that users write."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stagetrace import Chain, Query
from stagetrace.errors import DataError
from stagetrace.progress import Silent
from stagetrace.reweighting.repeat import Outcome, Repeat
from tests.cases import slow_but
from tests.replay.runs import FEATURES, WIDTH, Run, Stages

ADAM = partial(torch.optim.Adam, lr=0.01, eps=1e-3)
MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())


CASES = {
    "moved": Stages((Run(MOMENTUM, clip=0.4, schedule=True), Run(ADAM, dropout=0.2, accumulate=2)), (12, 11)),
    "frozen": Stages((Run(ADAM, dropout=0.2, clip=0.3), Run(MOMENTUM, freezes=True, accumulate=2)), (12, 11)),
    "three": Stages((Run(MOMENTUM, epochs=2), Run(ADAM, epochs=2, split=True), Run(ADAM, freezes=True)), (8, 7, 9)),
    "normed": Stages((Run(MOMENTUM, body=normed), Run(ADAM, body=normed, accumulate=2)), (12, 10)),
}


def drawn(stages: Stages) -> dict[int, Tensor]:
    """Weights between 0 and 2 of each stage's examples, one of them 0."""
    generator = torch.Generator().manual_seed(3)
    found = {
        stage: 2 * torch.rand(n, dtype=torch.float64, generator=generator) for stage, n in enumerate(stages.examples)
    }
    for weights in found.values():
        weights[4] = 0.0
    return found


def repeated(stages: Stages, weights: dict[int, Tensor], folder: Path) -> Outcome:
    repeat = Repeat.of("recorded order", stages.chain(folder / "recorded"), "stage0")
    return repeat.train({f"stage{stage}": each for stage, each in weights.items()}, folder / "again", Silent())


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_loop_with_a_weighted_loss(case: str, tmp_path: Path):
    stages = CASES[case]
    weights = drawn(stages)
    chain = repeated(stages, weights, tmp_path).chain
    for stage, expected in zip(chain.stages, stages.models(weights), strict=True):
        found = {**dict(stage.model.named_parameters()), **dict(stage.model.named_buffers())}
        for name, value in {**dict(expected.named_parameters()), **dict(expected.named_buffers())}.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", slow_but(CASES, "moved", "normed"))
def test_slopes_are_those_of_the_loop_at_the_same_weights(case: str, tmp_path: Path):
    """Central differences of the loop, really run again, also in the weight of an example that counts for nothing."""
    stages, weights = CASES[case], drawn(CASES[case])
    found = repeated(stages, weights, tmp_path).slopes(stages.query("mean"), Silent())

    def at(stage: int, example: int, move: float) -> float:
        moved = weights[stage].clone()
        moved[example] += move
        return float(stages.losses({**weights, stage: moved}).mean())

    for stage in range(len(stages.examples)):
        slopes = found[f"stage{stage}"]
        for example in (0, 4):
            coarse, fine = ((at(stage, example, h) - at(stage, example, -h)) / (2 * h) for h in (2e-4, 1e-4))
            assert abs((4 * fine - coarse) / 3 - float(slopes[example])) < 1e-6 * float(slopes.abs().max())


def test_what_was_kept_must_come_out_again(tmp_path: Path):
    """The steps are replayed against what they did with these weights."""
    stages = CASES["moved"]
    outcome = repeated(stages, drawn(stages), tmp_path)
    weighted = outcome.trained["stage1"]
    others = replace(weighted, weights=weighted.weights.flip(0))
    changed = replace(outcome, trained={**outcome.trained, "stage1": others})
    with pytest.raises(DataError, match="norm of the gradient"):
        changed.slopes(stages.query("mean"), Silent())


@pytest.mark.slow
def test_another_order_is_differentiated_too(tmp_path: Path):
    stages = CASES["moved"]
    chain, query = stages.chain(tmp_path / "recorded"), stages.query("mean")
    repeat = Repeat.of("recorded order", chain, "stage0").reordered("seed 5", 5)
    equal = {name: torch.ones(n, dtype=torch.float64) for name, n in zip(chain.names, stages.examples, strict=True)}
    found = repeat.train(equal, tmp_path / "equal", Silent()).slopes(query, Silent())

    def at(name: str, move: float) -> float:
        moved = equal[name].clone()
        moved[3] += move
        outcome = repeat.train({**equal, name: moved}, tmp_path / f"{name}{move}", Silent())
        return outcome.loss(query)

    for name, slopes in found.items():
        coarse, fine = ((at(name, h) - at(name, -h)) / (2 * h) for h in (2e-4, 1e-4))
        assert abs((4 * fine - coarse) / 3 - float(slopes[3])) < 1e-6 * float(slopes.abs().max())


def test_later_stages_alone_leave_the_first_as_it_is(tmp_path: Path):
    stages = CASES["moved"]
    chain: Chain = stages.chain(tmp_path / "recorded")
    weights = drawn(stages)[1]
    outcome = Repeat.of("recorded order", chain, "stage1").train({"stage1": weights}, tmp_path / "again", Silent())
    assert outcome.chain.stages[0] is chain.stages[0]
    assert list(outcome.trained) == ["stage1"]
    query: Query = stages.query("mean")
    assert outcome.loss(query) == pytest.approx(float(stages.losses({1: weights}).mean()), rel=1e-10)
