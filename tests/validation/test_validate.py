"""The whole comparison: effects against loops by hand, resumed runs against runs in one go."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace.errors import DataError, DescriptionError, ResultsError
from stagetrace.stages.fingerprint import fingerprint_model
from stagetrace.validation import (
    Adam,
    Agreement,
    GroupRemovals,
    RandomRemovals,
    Reliability,
    Resolve,
    Steps,
    TopRemovals,
    validate,
)
from stagetrace.validation.fits import Fit
from stagetrace.validation.fits.fit import Copies
from tests.chains import FROZEN_LOGISTIC, FROZEN_RIDGE, STRONG_TANH, ChainCase, chain_of, query_of
from tests.oracles import mean_weights, solved, solved_again
from tests.validation.plain import Plain, query_after

# A few large steps leave the model that they began with; that is said, and tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:validate. query loss:stagetrace.errors.StagetraceWarning")

HOW, STEPS = Plain("Adam", {"lr": 0.02}, 5, 6), Steps(Adam(0.02), 5, 6)


@dataclass(frozen=True)
class Given:
    """Predicts what it is told to."""

    name: str
    sign: float = 1.0
    unit: str | None = "query loss"
    asked: list[str] = field(default_factory=list, compare=False)

    def removal_effects(self, chain: Any, query: Any, stage: str, progress: Any = None) -> Tensor:
        self.asked.append(stage)
        generator = torch.Generator().manual_seed(1)
        return self.sign * torch.randn(len(chain[stage].stage.examples), generator=generator, dtype=torch.float64)


def reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses.mean() if reduction == "mean" else losses.sum()


CHOICES = (TopRemovals(4), RandomRemovals(3, by=0.5), GroupRemovals(0.2, 3), RandomRemovals(3, seed=4))


@pytest.mark.parametrize(
    ("case", "position", "reduction"),
    [
        (STRONG_TANH, 0, "mean"),
        (STRONG_TANH, 1, "sum"),
        pytest.param(FROZEN_LOGISTIC, 0, "sum", marks=pytest.mark.slow),
    ],
    ids=["first, mean", "last, sum", "frozen, sum"],
)
def test_effects_are_those_of_a_loop_by_hand(case: ChainCase, position: int, reduction: Any):
    chain, query = chain_of(case, solved(case)), query_of(case, reduction=reduction)
    stage, estimators = case.stages[position].name, (Given("a"), Given("b", -2.0, None))
    found = validate(
        chain,
        query,
        fit=STEPS,
        stage=None if position == 0 else stage,
        choices=CHOICES,
        estimators=estimators,
        seeds=(0, 7, 0),
        processes=1,
        together=3,
    )
    n = len(case.stages[position].x)
    predicted = Given("a").removal_effects(chain, query, stage)
    assert [each.asked for each in estimators] == [[stage]] * 2
    different = {(choice.by, removal) for choice in CHOICES for removal in choice.removals(n, predicted)}
    assert (found.stage, found.retrainings) == (stage, 2 * len(different))
    assert found.units == {"a": "query loss", "b": None}
    assert torch.equal(found.predictions["b"], -2 * predicted)
    assert 0 < found.per_minute < float("inf")
    assert [each.choice for each in found.measured] == [choice.name for choice in CHOICES]
    for choice, measured in zip(CHOICES, found.measured, strict=True):
        assert found[choice.name] is measured
        assert measured.removals == tuple(choice.removals(n, predicted))
        assert measured.effects.shape == (2, len(measured.removals))
        for run, seed in enumerate((0, 7)):
            control = reduced(query_after(case, position, (), 1.0, HOW, seed), reduction)
            for place, removal in enumerate(measured.removals):
                after = reduced(query_after(case, position, removal, choice.by, HOW, seed), reduction)
                assert float(measured.effects[run, place]) == pytest.approx(float(after - control), abs=1e-12)
        expected = torch.stack([choice.by * predicted[list(removal)].sum() for removal in measured.removals])
        torch.testing.assert_close(measured.predicted["a"], expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(measured.true, measured.effects.mean(dim=0), rtol=0, atol=0)
        assert measured.reliability == Reliability.of(measured.effects)
        assert str(measured.agreement["b"]) == str(Agreement.of(-2 * expected, measured.true))
    assert float(found.measured[0].effects.abs().min()) > 1e-9


def test_by_default_the_influence_is_compared_with_minima():
    """Of a chain at its minima a tenth of an example is nearly what the formula says."""
    case = FROZEN_RIDGE
    chain, query = chain_of(case, solved(case)), query_of(case)
    before = [fingerprint_model(stage.model) for stage in chain.stages]
    found = validate(chain, query, fit=Resolve(1e-12), choices=(TopRemovals(4, by=0.1),), processes=1)
    measured = found.measured[0]
    assert measured.effects.shape == (1, 4)  # a minimum knows no seed
    assert measured.reliability is None
    for place, removal in enumerate(measured.removals):
        weights = torch.ones(2, 23, dtype=torch.float64)
        weights[1, list(removal)] = 0.9
        control, after = solved_again(case, 0, weights * mean_weights(case.stages[0])).mean(dim=1)
        assert float(measured.true[place]) == pytest.approx(float(after - control), rel=1e-6)
    (agreement,) = measured.agreement.values()
    assert agreement.pearson_r > 0.99
    assert list(found.units.values()) == ["query loss"]
    assert [fingerprint_model(stage.model) for stage in chain.stages] == before


def test_each_stage_may_be_trained_in_its_own_way():
    case, seen = STRONG_TANH, list[int]()

    def again(weights: Tensor, previous: nn.Module) -> nn.Module:
        seen.append(len(weights))
        model = case.stages[1].make()
        model.load_state_dict(previous.state_dict())
        return model

    fits = {"pretrain": STEPS, "finetune": again}
    found = validate(
        chain_of(case, solved(case)),
        query_of(case),
        fit=fits,
        choices=(RandomRemovals(3),),
        estimators=[Given("a")],
        seeds=(0, 1),
        processes=1,
    )
    assert found.measured[0].effects.shape == (2, 3)  # one that draws is enough
    assert seen == [19] * 8


# Going on


class Counting(Fit):
    """Steps or minima, counted; ends the run at a piece of work."""

    is_stochastic = True

    def __init__(self, fit: Fit, last: int = -1) -> None:
        self.fit, self.last, self.runs, self.pieces = fit, last, list[tuple[int, ...]](), 0

    def __getstate__(self) -> dict[str, Any]:
        """What a run is recognised by: what is counted changes no number."""
        return {"fit": self.fit}

    def __call__(self, bound: Any, weights: Tensor, before: Copies | None, seed: int) -> Copies:
        if bound.name == "pretrain":
            if self.pieces == self.last:
                raise DataError("the power is gone")
            self.pieces += 1
            self.runs += [(seed, *(weight < 1).nonzero().flatten().tolist()) for weight in weights if weight.min() < 1]
        return self.fit(bound, weights, before, seed)


def run(fit: Fit, out: Path | None, **settings: Any) -> Tensor:
    case = FROZEN_LOGISTIC
    settings = {
        "choices": (RandomRemovals(5), GroupRemovals(0.3, 3), RandomRemovals(4, by=0.5), RandomRemovals(3)),
        "seeds": (0, 1),
        "together": 2,
        "query": query_of(case),
    } | settings
    query = settings.pop("query")
    chain = chain_of(case, solved(case))
    found = validate(chain, query, fit=fit, estimators=[Given("a")], processes=1, out=out, **settings)
    return torch.cat([measured.effects.flatten() for measured in found.measured])


@pytest.mark.parametrize("fit", [STEPS, pytest.param(Resolve(), marks=pytest.mark.slow)], ids=["steps", "resolve"])
def test_runs_that_were_cut_off_end_as_one_in_one_go(tmp_path: Path, fit: Fit):
    """Twice, between pieces of work; and nothing is trained twice. The third choice's removals are the first's."""
    whole = Counting(fit)
    expected = run(whole, None)
    assert len(whole.runs) == 2 * (5 + 3 + 4)
    parts = [Counting(fit, last) for last in (3, 4, -1)]
    for part in parts[:2]:
        with pytest.raises(DataError, match="power"):
            run(part, tmp_path)
    assert torch.equal(run(parts[2], tmp_path), expected)
    assert sorted(run for part in parts for run in part.runs) == sorted(whole.runs)
    lines = [json.loads(line) for line in (tmp_path / "retrainings.jsonl").read_text().splitlines()]
    assert len({(line["seed"], line["by"], tuple(line["removed"])) for line in lines}) == len(lines) == 24
    once_more = Counting(fit)
    assert torch.equal(run(once_more, tmp_path), expected)
    assert once_more.runs == []


def test_a_run_that_was_cut_off_within_a_piece_of_work_ends_as_one_in_one_go(tmp_path: Path):
    """Up to rounding: other copies are trained together then."""
    expected = run(Counting(STEPS), tmp_path)
    path = tmp_path / "retrainings.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9]) + lines[9][:-5])
    rest = Counting(STEPS)
    torch.testing.assert_close(run(rest, tmp_path), expected, rtol=0, atol=1e-14)
    assert len(rest.runs) == 24 - 9
    few = {"choices": (RandomRemovals(3),), "seeds": (0,)}
    expected = run(Counting(Resolve()), tmp_path / "other", **few)
    path = tmp_path / "other" / "retrainings.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    rest = Counting(Resolve())
    assert torch.equal(run(rest, tmp_path / "other", **few), expected)
    assert len(rest.runs) == 2


def test_more_choices_and_seeds_add_to_what_is_there(tmp_path: Path):
    first, more = Counting(STEPS), Counting(STEPS)
    run(first, tmp_path, choices=(RandomRemovals(4),), seeds=(0,))
    run(more, tmp_path, choices=(RandomRemovals(4), RandomRemovals(6)), seeds=(0, 1))
    assert len(first.runs) == 4
    assert sorted(more.runs) == sorted([(0, *r) for r in drawn(6)[4:]] + [(1, *r) for r in drawn(6)])


def drawn(count: int) -> Sequence[tuple[int, ...]]:
    return RandomRemovals(count).removals(23, torch.zeros(23))


@pytest.mark.parametrize(
    ("settings", "fit", "message"),
    [
        ({"query": query_of(FROZEN_LOGISTIC, reduction="sum")}, STEPS, 'query.reduction: "mean" -> "sum"'),
        ({"stage": "finetune"}, STEPS, 'stage: "pretrain" -> "finetune"'),
        ({}, Steps(Adam(0.02), 6, 6), "fits.pretrain.steps: 5 -> 6"),
    ],
    ids=["query", "stage", "fit"],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, settings: Any, fit: Fit, message: str):
    run(STEPS, tmp_path, choices=(RandomRemovals(3),), seeds=(0,))
    before = (tmp_path / "retrainings.jsonl").read_bytes()
    with pytest.raises(ResultsError) as caught:
        run(fit, tmp_path, **settings)
    assert message in str(caught.value)
    assert (tmp_path / "retrainings.jsonl").read_bytes() == before


def test_what_was_finished_before_an_error_is_kept(tmp_path: Path):
    with pytest.raises(DataError, match="power"):
        run(Counting(STEPS, last=2), tmp_path)
    assert len((tmp_path / "retrainings.jsonl").read_text().splitlines()) == 4


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query": query_of(FROZEN_LOGISTIC, reduction="none")}, r"type Query\(..., reduction='mean'\), got 'none'"),
        ({"stage": "other"}, "no stage is called 'other'"),
        ({"fit": {"pretrain": STEPS}}, "no fit for stage 'finetune'"),
        ({"fit": {"pretrain": STEPS, "fine": STEPS}}, "no stage is called 'fine'"),
        ({"fit": 3}, r"a fit must be Rerun\(\), Resolve\(\)"),
        ({"fit": lambda weights: None}, "'finetune': its fit must take the stage before"),
        ({"estimators": [Given("a"), Given("a")]}, "two estimators are called 'a'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(settings: dict[str, Any], message: str):
    case = FROZEN_LOGISTIC
    settings = {"query": query_of(case), "fit": STEPS, "estimators": [Given("a")]} | settings
    with pytest.raises(DescriptionError, match=message) as caught:
        validate(
            chain_of(case, solved(case)), settings.pop("query"), choices=(RandomRemovals(3),), processes=1, **settings
        )
    assert "\n" not in str(caught.value)


def test_an_unknown_choice_is_said_with_those_there_are():
    case = FROZEN_RIDGE
    fit: Callable[..., Any] = Resolve()
    chain = chain_of(case, solved(case))
    found = validate(chain, query_of(case), fit=fit, choices=(RandomRemovals(3),), estimators=[Given("a")], processes=1)
    with pytest.raises(DescriptionError, match="no choice 'other'; there are: '3 at random'"):
        found["other"]


def test_too_few_removals_and_two_choices_of_one_name_are_refused_before_training():
    case = FROZEN_RIDGE
    chain, query = chain_of(case, solved(case)), query_of(case)

    def never(weights: torch.Tensor) -> torch.nn.Module:
        raise AssertionError("trained")

    for choices, message in (
        ((RandomRemovals(2),), "at least 3"),
        ((RandomRemovals(3), RandomRemovals(3, by=1)), "two choices"),
    ):
        with pytest.raises(DescriptionError, match=message):
            validate(chain, query, fit=never, stage=chain.names[-1], choices=choices, estimators=[Given("a")])
