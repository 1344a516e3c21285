"""Training again to the minimum, against the dense oracle."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace import Proximal
from stagetrace.errors import SolveError
from stagetrace.validation import Resolve, removal_effects
from stagetrace.validation.resolving import leave_out
from stagetrace.validation.retrain import Retraining
from tests.cases import slow_but
from tests.chains import FROZEN_LOGISTIC, FROZEN_TANH, STRONG_LOGISTIC, STRONG_TANH, ChainCase, chain_of
from tests.oracles import (
    Point,
    complete,
    mean_weights,
    minimise,
    objective,
    own_solution,
    query_losses,
    solved,
    solved_again,
)
from tests.validation.fits import BY_NAME, ELASTIC, PARTLY, THREE, TIED, again

RESOLVE_PLACES = [
    (FROZEN_LOGISTIC, 0),
    (FROZEN_LOGISTIC, 1),
    (STRONG_TANH, 0),
    (THREE, 0),
    (THREE, 1),
    (TIED, 0),
    (PARTLY, 0),
    (BY_NAME["constant before, proximal 0.5"], 0),
    (ELASTIC, 0),
    (BY_NAME["renamed by prefix, frozen"], 0),
]


@pytest.mark.parametrize(
    ("case", "position"),
    slow_but(RESOLVE_PLACES, (FROZEN_LOGISTIC, 0), (STRONG_TANH, 0), (THREE, 1), (PARTLY, 0)),
    ids=[f"{c.name}-{p}" for c, p in RESOLVE_PLACES],
)
def test_resolve_equals_the_dense_oracle_and_removal_effects(case: ChainCase, position: int):
    retraining = again(case, position, Resolve(tolerance=1e-12))
    stage, runs, by = case.stages[position], [(), (2,), (5, 7)], 0.4
    weights = torch.stack([leave_out(len(stage.x), run, by) for run in runs]) * mean_weights(stage)
    expected = solved_again(case, position, weights)
    found = retraining.losses(runs, by, seed=0)
    assert float((expected[1:] - expected[0]).abs().max()) > 1e-6
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=1e-6, atol=1e-10)
    effects = removal_effects(retraining.chain, retraining.query, stage.name, [2], share=by, tolerance=1e-12)
    torch.testing.assert_close((found[1] - found[0]).unsqueeze(1), effects, rtol=1e-6, atol=1e-10)


def test_resolve_keeps_an_estimated_pull_as_strong_as_it_was():
    case, given = STRONG_TANH, again(STRONG_TANH, 0, Resolve(tolerance=1e-12))
    auto = {case.stages[1].name: {"link": Proximal(case.stages[1].link.shared, alpha="auto")}}
    chain = chain_of(case, solved(case), **auto)
    estimated = Retraining(chain, given.query, "pretrain", given.fits)
    torch.testing.assert_close(estimated.losses([(1,)], 0.5, 0), given.losses([(1,)], 0.5, 0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case", slow_but([FROZEN_TANH, STRONG_TANH], FROZEN_TANH), ids=lambda case: case.name)
def test_resolve_with_proximity_minimises_the_written_out_objective(case: ChainCase):
    """Each stage pulled towards its own trained values, and a proximal one towards the stage before too."""
    proximity, n = 0.03, len(case.stages[0].x)
    fit = Resolve(tolerance=1e-12, proximity=proximity)
    runs = [(), (3,), (0, 1, 2, 3, 4, 5)]
    found = again(case, 0, fit).losses(runs, 1.0, 0)
    for place, run in enumerate(runs):
        previous: Point = {}
        for position, stage in enumerate(case.stages):
            weights = leave_out(n, run) / n if position == 0 else mean_weights(stage)
            start = own_solution(case, position)[0]

            def value(own: Tensor, stage=stage, previous=previous, weights=weights, start=start) -> Tensor:
                return objective(stage, own, previous, weights) + proximity / 2 * (own - start).square().sum()

            previous = complete(stage, minimise(value, start), previous)
        torch.testing.assert_close(found[place], query_losses(case, previous), rtol=1e-9, atol=1e-11)
    free = again(case, 0, Resolve(tolerance=1e-12)).losses(runs, 1.0, 0)
    assert float((free - found)[1:].abs().max()) > 1e-4


def test_resolve_says_that_a_copy_found_no_minimum():
    with pytest.raises(SolveError, match="'pretrain': no minimum found in 1 Newton steps"):
        again(FROZEN_TANH, 0, Resolve(tolerance=1e-12, max_steps=1)).losses([tuple(range(9))], 1.0, 0)


def test_resolve_makes_its_preconditioner_once(monkeypatch: pytest.MonkeyPatch):
    from stagetrace.validation.fits import resolve as module

    made, of_bound = list[str](), module.Preconditioner.of

    def of(bound: Any, proximity: float) -> object:
        made.append(bound.name)
        return of_bound(bound, proximity)

    monkeypatch.setattr(module.Preconditioner, "of", staticmethod(of))
    retraining = again(STRONG_LOGISTIC, 0, Resolve())
    retraining.prepare()
    for run in ((0,), (1,)):
        retraining.losses([(), run], 1.0, 0)
    assert made == ["pretrain", "finetune"]
