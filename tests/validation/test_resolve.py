"""Chains solved again against the dense oracle: through frozen and proximal links, from any stage."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from stagetrace import Chain, Frozen, Proximal, Query
from stagetrace.errors import DescriptionError, SolveError
from stagetrace.stages.fingerprint import fingerprint_model
from stagetrace.validation import Agreement, polish, removal_effects
from stagetrace.validation.resolving import leave_out, query_loss, resolve
from tests.chains import (
    FROZEN_LOGISTIC,
    FROZEN_RIDGE,
    STRONG_RIDGE,
    STRONG_TANH,
    ChainCase,
    chain_of,
    each_case,
    each_place,
    query_of,
)
from tests.oracles import mean_weights, query_losses, solved, solved_again


@each_place()
def test_equals_the_dense_oracle(case: ChainCase, position: int):
    """Through every kind of link: the query losses with three tenths of an example taken out."""
    stage = case.stages[position]
    weights = leave_out(len(stage.x), [2], share=0.3)
    chain, query = chain_of(case, solved(case)), query_of(case, reduction="none")
    again = resolve(chain, stage.name, weights, tolerance=1e-12)
    expected = solved_again(case, position, weights * mean_weights(stage))
    before = query_losses(case, solved(case)[-1])
    change = expected - before
    assert change.abs().max() > 1e-6
    torch.testing.assert_close(query_loss(again.chain, query) - before, change, rtol=1e-6, atol=1e-9)
    assert list(again.minima) == [later.name for later in case.stages[position:]]


@each_place()
def test_earlier_stages_stay_and_nothing_is_touched(case: ChainCase, position: int):
    chain, name = chain_of(case, solved(case)), case.stages[position].name
    before = [fingerprint_model(stage.model) for stage in chain.stages]
    again = resolve(chain, name, leave_out(len(chain[name].stage.examples), [0], share=0.1)).chain
    assert [fingerprint_model(stage.model) for stage in chain.stages] == before
    changed = [fingerprint_model(stage.model) != old for stage, old in zip(again.stages, before, strict=True)]
    assert changed == [number >= position for number in range(len(chain))]


@each_case()
def test_weights_of_one_change_nothing(case: ChainCase):
    chain, query = chain_of(case, solved(case)), query_of(case)
    again = resolve(chain, chain.names[0], torch.ones(len(case.stages[0].x)))
    assert float(query_loss(again.chain, query)) == pytest.approx(float(query_loss(chain, query)), abs=1e-9)


def test_an_estimated_pull_stays_as_strong_as_it_was():
    case = STRONG_TANH
    name, last = (stage.name for stage in case.stages)
    shared = case.stages[1].link.shared
    auto = chain_of(case, solved(case), **{last: {"link": Proximal(shared, alpha="auto")}})
    estimated = auto[last].link_settings["alpha"]
    assert estimated == pytest.approx(case.stages[1].link.alpha, rel=1e-6)
    weights = leave_out(len(case.stages[0].x), [1], share=0.5)
    losses = [
        float(query_loss(resolve(chain, name, weights, tolerance=1e-11).chain, query_of(case)))
        for chain in (auto, chain_of(case, solved(case)))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)
    assert resolve(auto, name, weights).chain[last].link_settings["alpha"] == estimated


@each_case()
def test_polish_finds_the_minima_again(case: ChainCase):
    """From the last stage's parameters moved a little, and the first stage's where nothing was kept of it."""
    points = [{name: value.clone() for name, value in point.items()} for point in solved(case)]
    rough = chain_of(case, tuple(points))
    own = rough.last.trained_values
    with torch.no_grad():
        for name, parameter in rough.last.stage.model.named_parameters():
            if name in own:
                parameter += 0.02
    ready = polish(rough, tolerance=1e-11)
    for stage, point, minimum in zip(ready.chain.stages, solved(case), ready.minima.values(), strict=True):
        assert minimum.gradient_norm <= 1e-11
        assert minimum.smallest_ritz > 0
        for name, parameter in stage.model.named_parameters():
            torch.testing.assert_close(parameter.detach(), point[name], rtol=1e-7, atol=1e-8)


def test_a_chain_that_finds_no_minimum_is_an_error():
    case = FROZEN_LOGISTIC
    first = {"weight_decay": 0.5}
    chain = chain_of(case, solved(case), **{case.stages[0].name: first})
    with pytest.raises(SolveError, match="'pretrain': no minimum found in 1 Newton steps"):
        polish(chain, max_steps=1)


@pytest.mark.parametrize("case", [FROZEN_RIDGE, STRONG_RIDGE], ids=lambda case: case.name)
def test_removal_effects_are_differences_of_the_query_loss(case: ChainCase):
    name, n = case.stages[0].name, len(case.stages[0].x)
    chain = chain_of(case, solved(case))
    for reduction, shape in (("mean", (3,)), ("none", (len(case.query_x), 3))):
        found = removal_effects(chain, query_of(case, reduction=reduction), name, [4, 0, 9], share=0.5)
        assert found.shape == shape
        for column, index in enumerate([4, 0, 9]):
            weights = leave_out(n, [index], 0.5) * mean_weights(case.stages[0])
            expected = solved_again(case, 0, weights) - query_losses(case, solved(case)[-1])
            expected = expected.mean() if reduction == "mean" else expected
            torch.testing.assert_close(found[..., column], expected, rtol=1e-6, atol=1e-10)


def test_query_loss_reduces_as_the_query_says():
    case = FROZEN_LOGISTIC
    chain, losses = chain_of(case, solved(case)), query_losses(case, solved(case)[-1])
    reductions: dict[Any, torch.Tensor] = {"mean": losses.mean(), "sum": losses.sum(), "none": losses}
    for reduction, expected in reductions.items():
        query = Query(TensorDataset(case.query_x, case.query_y), reduction=reduction, batch_size=3)
        torch.testing.assert_close(query_loss(chain, query), expected, rtol=1e-12, atol=1e-14)


def test_one_stage_is_a_chain_too():
    case = FROZEN_RIDGE
    chain = Chain(chain_of(case, solved(case)).stages[0])
    query = Query(TensorDataset(case.stages[0].x[:3], case.stages[0].y[:3]))
    assert removal_effects(chain, query, "pretrain", [0]) > 0  # it is in the query


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda chain: resolve(chain, "other"), r"resolve: .*'other'.* are 'pretrain', 'finetune'"),
        (lambda chain: resolve(chain, "finetune", torch.ones(3)), r"stage 'finetune': weights .* \[19\], got \[3\]"),
        (lambda chain: leave_out(3, [3]), "example 3 does not exist; type 0 to 2"),
        (lambda chain: leave_out(3, [0], share=1.5), "share must be from 0"),
        (lambda chain: Agreement.of(torch.ones(3), torch.ones(2)), r"got \[3\] and \[2\]"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[Chain], object], message: str):
    with pytest.raises(DescriptionError, match=message):
        call(chain_of(FROZEN_LOGISTIC, solved(FROZEN_LOGISTIC)))


def test_the_link_is_kept():
    chain = chain_of(FROZEN_LOGISTIC, solved(FROZEN_LOGISTIC))
    again = resolve(chain, "pretrain", leave_out(23, [0])).chain
    assert isinstance(again.stages[1].link, Frozen)
    for name, other in again["finetune"].inherited_from.items():
        assert isinstance(other, str)
        assert torch.equal(again["finetune"].inherited_values[name], again["pretrain"].trained_values[other])
