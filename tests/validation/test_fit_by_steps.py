"""Training again by steps, against plain PyTorch loops."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch.utils.data import TensorDataset

from stagetrace import Chain, Frozen, Stage
from stagetrace.errors import DescriptionError, SolveError
from stagetrace.objectives import Regression
from stagetrace.stages.fingerprint import fingerprint_model
from stagetrace.validation import SGD, Adam, AdamW, Resolve, Steps
from stagetrace.validation.fits.fit import one_copy
from stagetrace.validation.fits.steps import orders
from stagetrace.validation.resolving import leave_out
from stagetrace.validation.retrain import Retraining
from tests.cases import slow_but
from tests.chains import FROZEN_LOGISTIC, FROZEN_TANH, STRONG_LOGISTIC, STRONG_TANH, ChainCase, chain_of, query_of
from tests.oracles import flatten, mean_weights, objective, own_names, solved
from tests.validation.fits import (
    ELASTIC,
    PARTLY,
    THREE,
    TIED,
    WAYS,
    Bare,
    Branching,
    again,
    close,
    ends,
    handed,
    linear,
    model_of,
    of,
    saved,
)
from tests.validation.plain import Plain, batches, query_after, trained

STEP_PLACES = [(FROZEN_LOGISTIC, 1), (STRONG_TANH, 1), (ELASTIC, 1), (TIED, 0), (PARTLY, 1)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("case", "position"),
    slow_but(STEP_PLACES, (FROZEN_LOGISTIC, 1), (ELASTIC, 1), (TIED, 0)),
    ids=[f"{c.name}-{p}" for c, p in STEP_PLACES],
)
def test_steps_are_those_of_torch(case: ChainCase, position: int, way: str):
    """Several copies at once and each alone, what is shared taken from another previous stage for each."""
    how, fit = WAYS[way]
    bound = chain_of(case, solved(case)).bound_stages[position]
    weights, start = ends(case, position), solved(case)[position]
    before = handed(case, position, len(weights))
    found = fit()(bound, weights, before, seed=3)
    for place, weight in enumerate(weights):
        previous = {} if before is None else one_copy(before, place)
        expected = trained(case.stages[position], start, weight, previous, how, seed=3)
        close(found, place, expected)
        alone = None if before is None else {name: value[place : place + 1] for name, value in before.items()}
        close(fit()(bound, weights[place : place + 1], alone, seed=3), 0, expected)
    own = own_names(case.stages[position])
    assert float((flatten(one_copy(found, 0), own) - flatten(start, own)).abs().max()) > 1e-3
    assert float((flatten(one_copy(found, 0), own) - flatten(one_copy(found, 1), own)).abs().max()) > 1e-7


@pytest.mark.parametrize("frozen_too", [False, True], ids=["own", "all"])
def test_adam_goes_on_with_a_saved_state(frozen_too: bool):
    """The optimiser may have been given parameters that it never moved."""
    case, stage = FROZEN_TANH, FROZEN_TANH.stages[1]
    point, bound = solved(case)[1], chain_of(case, solved(case)).bound_stages[1]
    parameters = {name: value.clone().requires_grad_(name in own_names(stage)) for name, value in point.items()}
    order = list(parameters) if frozen_too else own_names(stage)
    optimiser = torch.optim.Adam([parameters[name] for name in order], lr=0.03)
    for _ in range(5):
        optimiser.zero_grad()
        objective(stage, flatten(parameters, own_names(stage)), solved(case)[0], mean_weights(stage)).backward()
        optimiser.step()
    ended = {name: value.detach() for name, value in parameters.items()}
    state = optimiser.state_dict()
    moved = Chain(
        chain_of(case, solved(case)).stages[0],
        Stage(
            "on",
            model=model_of(stage, ended),
            objective=Regression(),
            data=TensorDataset(stage.x, stage.y),
            link=Frozen("embedding"),
            weight_decay=stage.weight_decay,
        ),
    ).bound_stages[1]
    assert bound.trained.names == tuple(own_names(stage))
    how = Plain("Adam", {"lr": 0.01}, 8, 5, state=renumbered(state))
    weights = ends(case, 1)
    found = Steps(Adam(0.01, state=state), 8, 5)(moved, weights, None, seed=1)
    for place, weight in enumerate(weights):
        close(found, place, trained(stage, ended, weight, {}, how, seed=1))
    fresh = Steps(Adam(0.01), 8, 5)(moved, weights, None, seed=1)
    assert float((fresh["head.weight"] - found["head.weight"]).abs().max()) > 1e-3


def renumbered(state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser that was given only the parameters it moved."""
    moved = [number for group in state["param_groups"] for number in group["params"] if number in state["state"]]
    group = copy.deepcopy(state["param_groups"][0]) | {"params": list(range(len(moved)))}
    return {"state": {new: state["state"][old] for new, old in enumerate(moved)}, "param_groups": [group]}


@pytest.mark.parametrize("way", ["Adam", "SGD", "cold"])
def test_weight_zero_is_the_sum_without_the_example_and_the_divisor_kept(way: str):
    case, (how, fit) = FROZEN_TANH, WAYS[way]
    weights = torch.stack([torch.ones(23).double(), leave_out(23, [7, 1])])
    found = fit()(chain_of(case, solved(case)).bound_stages[0], weights, None, seed=2)
    everything, stage = torch.ones(23, dtype=torch.float64), case.stages[0]
    close(found, 1, trained(stage, solved(case)[0], everything, {}, how, seed=2, drop=[7, 1]))


@pytest.mark.parametrize("case", [FROZEN_TANH, STRONG_LOGISTIC, THREE], ids=lambda case: case.name)
@pytest.mark.parametrize("companions", [1, 2, 6])
@pytest.mark.parametrize("start", [None, "cold"])
def test_an_example_in_no_batch_changes_nothing_at_all(case: ChainCase, companions: int, start: Literal["cold"] | None):
    chain, fit = chain_of(case, solved(case)), Steps(Adam(0.02), 3, 4, start)
    unseen = sorted(set(range(23)) - {i for batch in batches(23, 4, 3, seed=5) for i in batch})
    assert len(unseen) == 11
    runs = [(), *[(index,) for index in unseen[:companions]], (batches(23, 4, 3, seed=5)[0][0],)]
    losses = Retraining(chain, query_of(case), chain.names[0], dict.fromkeys(chain.names, fit)).losses(runs, 1.0, 5)
    assert torch.equal(losses[1:-1], losses[0].expand(companions))
    assert abs(float(losses[-1] - losses[0])) > 1e-8


def test_the_control_does_not_depend_on_its_companions():
    """Two controls of one batched model are the same to the last bit; of different ones up to rounding."""
    case = STRONG_TANH
    retraining = again(case, 0, Steps(Adam(0.01), 20, 5), "mean")
    twice = retraining.losses([(), (3,), (), (4, 5), (3,)], 1.0, 0)
    assert twice[0] == twice[2]
    assert twice[1] == twice[4]
    for companions in ([], [(3,)], [(8,), (9,), (10,)], [(i,) for i in range(13)]):
        control = retraining.losses([(), *companions], 1.0, 0)[0]
        assert float(control) == pytest.approx(float(twice[0]), rel=1e-13)


def test_orders_are_epochs_of_all_examples():
    assert orders(7, 3, 8, 2) == batches(7, 3, 8, 2)
    for epoch in (0, 3, 6):
        assert sorted(itertools.chain(*orders(7, 3, 9, 2)[epoch : epoch + 3])) == list(range(7))
    assert orders(7, 3, 8, 2) != orders(7, 3, 8, 3)
    assert orders(3, 100, 2, 0) == batches(3, 100, 2, 0)


def test_nothing_of_the_users_is_touched():
    chain = chain_of(STRONG_TANH, solved(STRONG_TANH))
    before = [fingerprint_model(stage.model) for stage in chain.stages]
    for stage in chain.stages:
        stage.model.train()
    state = torch.get_rng_state()
    for start in ("previous", "cold"):
        Steps(Adam(0.1), 2, 5, start)(chain.bound_stages[1], ends(STRONG_TANH, 1), handed(STRONG_TANH, 1, 4), 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [fingerprint_model(stage.model) for stage in chain.stages] == before
    assert all(stage.model.training for stage in chain.stages)


def test_a_cold_start_leaves_constants_as_they_are():
    """Also where the module that is drawn anew has trained parameters beside them."""
    chain = linear(bias_only=True)
    model: Any = chain.stages[0].model
    found = Steps(SGD(1e-9), 1, 6, start="cold")(chain["s"], torch.ones(1, 6), None, seed=4)
    assert torch.equal(found["weight"][0], model.weight)
    torch.manual_seed(4)
    model = copy.deepcopy(model)
    model.reset_parameters()
    torch.testing.assert_close(found["bias"][0], model.bias.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Steps(SGD(1e300), 9, 2)(linear()["s"], torch.ones(2, 6), None, 0), "stage 's': training diverged"),
        (
            lambda: Steps(SGD(), 1, 6, "cold")(of(Bare())["s"], torch.ones(1, 6), None, 0),
            r"a cold start needs reset_parameters\(\) on '' \(Bare\)",
        ),
        (lambda: Steps(SGD(), 1, 6)(of(Branching())["s"], torch.ones(2, 6), None, 0), "type together=1"),
        (lambda: Steps(SGD(), 0, 6), r"Steps\(steps=...\) must be a whole number"),
        (lambda: Steps(SGD(), 1, 0), r"Steps\(batch_size=...\) must be a whole number"),
        (lambda: Steps(SGD(), 1, 1, start="hot"), "start must be 'warm', 'previous' or 'cold', got 'hot'"),  # pyright: ignore[reportArgumentType]
        (lambda: Steps(SGD(), 1, 1, schedule="step"), "schedule must be 'constant' or 'cosine', got 'step'"),  # pyright: ignore[reportArgumentType]
        (lambda: Adam(0.0), "Adam: lr must be a number above 0"),
        (lambda: AdamW(weight_decay=-1.0), "AdamW: weight_decay must be a number of at least 0"),
        (lambda: SGD(math.inf), "SGD: lr must be a number above 0"),
        (lambda: SGD(0.1, 1.0), "SGD: momentum must be from 0 to below 1"),
        (lambda: Resolve(proximity=-1.0), "proximity must be a number of at least 0"),
        (lambda: begin({}), r"state must be the state_dict\(\) of a torch.optim.Adam that took steps"),
        (lambda: begin(saved(steps=0)), r"state must be the state_dict\(\) of a torch.optim.Adam that took steps"),
        (lambda: begin(saved(shape=(3, 1))), r"has parameters of the shapes \[\(3, 1\), .*the stage trained"),
        (lambda: begin(saved(uneven=True)), r"took \[1, 2\] steps; they must have taken as many"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call: Callable[[], object], message: str):
    with pytest.raises((DescriptionError, SolveError, Exception), match=message) as caught:
        call()
    assert type(caught.value).__module__ == "stagetrace.errors"
    assert "\n" not in str(caught.value)


def begin(state: dict[str, Any]) -> object:
    return Steps(Adam(state=state), 1, 6)(linear()["s"], torch.ones(1, 6), None, 0)


@pytest.mark.parametrize("way", ["SGD", "cold"])
@pytest.mark.parametrize(("case", "position"), [(THREE, 0), (THREE, 1), (STRONG_TANH, 0), (STRONG_TANH, 1)])
def test_later_stages_start_from_the_one_trained_before(case: ChainCase, position: int, way: str):
    how, fit = WAYS[way][0], WAYS[way][1]()
    found = again(case, position, fit).losses([(), (2, 3)], 0.7, seed=4)
    for place, run in enumerate([(), (2, 3)]):
        torch.testing.assert_close(found[place], query_after(case, position, run, 0.7, how, 4), rtol=1e-10, atol=1e-12)
