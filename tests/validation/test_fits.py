"""Training again: by steps against plain PyTorch loops, to minima against the dense oracle, and by the user."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Frozen, Proximal, Stage
from stagetrace.errors import DescriptionError, SolveError
from stagetrace.objectives import Regression
from stagetrace.stages.fingerprint import fingerprint_model
from stagetrace.validation import SGD, Adam, AdamW, Fit, Resolve, Steps, removal_effects
from stagetrace.validation.fits import CustomTraining, as_fit
from stagetrace.validation.fits.fit import Copies, described, one_copy
from stagetrace.validation.fits.steps import orders
from stagetrace.validation.resolving import leave_out
from stagetrace.validation.retrain import Retraining
from tests.chains import (
    CASES,
    FROZEN_LOGISTIC,
    FROZEN_RIDGE,
    FROZEN_TANH,
    STRONG_LOGISTIC,
    STRONG_TANH,
    ChainCase,
    chain_of,
    query_of,
)
from tests.oracles import (
    Point,
    complete,
    flatten,
    mean_weights,
    minimise,
    objective,
    own_names,
    own_solution,
    query_losses,
    solved,
    solved_again,
    unflatten,
)
from tests.validation.plain import Plain, batches, query_after, trained

BY_NAME = {case.name: case for case in CASES}
TIED = BY_NAME["tied, frozen"]
UNTIED = BY_NAME["untied, proximal 0.5"]
THREE = BY_NAME["three, proximal then frozen"]
PARTLY = BY_NAME["kept within proximal 0.5"]


def ends(case: ChainCase, position: int, seed: int = 3) -> Tensor:
    """Weights of four copies: all ones, an example out, half an example out, and any."""
    n = len(case.stages[position].x)
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.stack([torch.ones(n).double(), leave_out(n, [4]), leave_out(n, [2, 5], 0.5), 2 * drawn])


def handed(case: ChainCase, position: int, copies: int) -> Copies | None:
    """Another previous stage for each copy."""
    if position == 0:
        return None
    generator = torch.Generator().manual_seed(8)
    return {
        name: value + 0.1 * torch.randn(copies, *value.shape, generator=generator, dtype=torch.float64)
        for name, value in solved(case)[position - 1].items()
    }


def close(found: Copies, place: int, expected: Point, tolerance: float = 1e-10) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name][place], value, rtol=tolerance, atol=tolerance)


# Steps

WAYS: dict[str, tuple[Plain, Callable[[], Steps]]] = {
    "Adam": (Plain("Adam", {"lr": 0.02}, 11, 5), lambda: Steps(Adam(0.02), 11, 5)),
    "Adam, other settings": (
        Plain("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}, 7, 4),
        lambda: Steps(Adam(0.01, (0.8, 0.95), 1e-3), 7, 4),
    ),
    "SGD": (Plain("SGD", {"lr": 0.1}, 9, 6), lambda: Steps(SGD(0.1), 9, 6)),
    "SGD, momentum": (
        Plain("SGD", {"lr": 0.05, "momentum": 0.9}, 12, 10),
        lambda: Steps(SGD(0.05, 0.9), 12, 10),
    ),
    "AdamW": (
        Plain("AdamW", {"lr": 0.02, "weight_decay": 0.3}, 11, 5),
        lambda: Steps(AdamW(0.02, weight_decay=0.3), 11, 5),
    ),
    "cosine": (
        Plain("Adam", {"lr": 0.05}, 13, 5, cosine=True),
        lambda: Steps(Adam(0.05), 13, 5, schedule="cosine"),
    ),
    "cold": (Plain("Adam", {"lr": 0.02}, 6, 5, cold=True), lambda: Steps(Adam(0.02), 6, 5, start="cold")),
    "cold, cosine": (
        Plain("SGD", {"lr": 0.2, "momentum": 0.5}, 6, 5, cosine=True, cold=True),
        lambda: Steps(SGD(0.2, 0.5), 6, 5, start="cold", schedule="cosine"),
    ),
}
ELASTIC = BY_NAME["tanh, elastic 0.5"]
STEP_PLACES = [(FROZEN_LOGISTIC, 1), (STRONG_TANH, 1), (ELASTIC, 1), (TIED, 0), (PARTLY, 1)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("case", "position"), STEP_PLACES, ids=[f"{c.name}-{p}" for c, p in STEP_PLACES])
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


def model_of(stage: Any, point: Point) -> nn.Module:
    model = stage.make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(point[name])
    return model


@pytest.mark.parametrize("way", ["Adam", "SGD", "cold"])
def test_weight_zero_is_the_sum_without_the_example_and_the_divisor_kept(way: str):
    case, (how, fit) = FROZEN_TANH, WAYS[way]
    weights = torch.stack([torch.ones(23).double(), leave_out(23, [7, 1])])
    found = fit()(chain_of(case, solved(case)).bound_stages[0], weights, None, seed=2)
    everything, stage = torch.ones(23, dtype=torch.float64), case.stages[0]
    close(found, 1, trained(stage, solved(case)[0], everything, {}, how, seed=2, drop=[7, 1]))


@pytest.mark.parametrize("case", [FROZEN_TANH, STRONG_LOGISTIC, THREE], ids=lambda case: case.name)
@pytest.mark.parametrize("companions", [1, 2, 6])
@pytest.mark.parametrize("start", ["warm", "cold"])
def test_an_example_in_no_batch_changes_nothing_at_all(
    case: ChainCase, companions: int, start: Literal["warm", "cold"]
):
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
    for start in ("warm", "cold"):
        Steps(Adam(0.1), 2, 5, start)(chain.bound_stages[1], ends(STRONG_TANH, 1), handed(STRONG_TANH, 1, 4), 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [fingerprint_model(stage.model) for stage in chain.stages] == before
    assert all(stage.model.training for stage in chain.stages)


def linear(bias_only: bool = False) -> Chain:
    model = nn.Linear(2, 1).double()
    model.weight.requires_grad_(not bias_only)
    x = torch.linspace(-1, 1, 12).double().reshape(6, 2)
    return Chain(Stage("s", model=model, objective=Regression(), data=TensorDataset(x, x[:, :1])))


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


class Bare(nn.Module):
    """Its only parameter can be drawn anew by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * self.scale


class Branching(Bare):
    """Reads a value out of a tensor, which one batched model cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if float(self.scale.detach()) > 0 else 1)


def of(model: nn.Module) -> Chain:
    x = torch.linspace(-1, 1, 12).double().reshape(6, 2)
    return Chain(Stage("s", model=model, objective=Regression(), data=TensorDataset(x, x[:, :1] + 0.1)))


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
        (lambda: Steps(SGD(), 1, 1, start="hot"), "start must be 'warm' or 'cold', got 'hot'"),  # pyright: ignore[reportArgumentType]
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


def saved(steps: int = 1, shape: tuple[int, ...] = (1, 2), uneven: bool = False) -> dict[str, Any]:
    parameters = [nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(1))]
    optimiser = torch.optim.Adam(parameters)
    for step in range(2 * steps if uneven else steps):
        for parameter in parameters[: 1 if uneven and step else 2]:
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
        optimiser.zero_grad()
    return optimiser.state_dict()


# Resolve

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


def again(case: ChainCase, position: int, fit: Fit, reduction: Literal["mean", "none"] = "none") -> Retraining:
    chain = chain_of(case, solved(case))
    query, fits = query_of(case, reduction=reduction), dict.fromkeys(chain.names, fit)
    return Retraining(chain, query, chain.names[position], fits)


@pytest.mark.parametrize(("case", "position"), RESOLVE_PLACES, ids=[f"{c.name}-{p}" for c, p in RESOLVE_PLACES])
def test_resolve_equals_the_dense_oracle_and_removal_effects(case: ChainCase, position: int):
    retraining = again(case, position, Resolve(tolerance=1e-12))
    stage, runs, by = case.stages[position], [(), (2,), (5, 7)], 0.4
    weights = torch.stack([leave_out(len(stage.x), run, by) for run in runs]) * mean_weights(stage)
    expected = solved_again(case, position, weights, steps=12)
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


@pytest.mark.parametrize("case", [FROZEN_TANH, STRONG_TANH], ids=lambda case: case.name)
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


# The user's own function


def by_newton(case: ChainCase) -> dict[str, CustomTraining]:
    """A fit of each stage that shares no code with the library."""

    def first(weights: Tensor) -> nn.Module:
        stage = case.stages[0]
        start = own_solution(case, 0)[0]
        own = minimise(lambda own: objective(stage, own, {}, weights / len(weights)), start)
        return model_of(stage, complete(stage, own, {}))

    def second(weights: Tensor, previous: nn.Module) -> nn.Module:
        stage, point = case.stages[1], {name: p.detach() for name, p in previous.named_parameters()}
        start = own_solution(case, 1)[0]
        own = minimise(lambda own: objective(stage, own, point, weights / len(weights)), start)
        return model_of(stage, complete(stage, own, point))

    return {case.stages[0].name: CustomTraining(first), case.stages[1].name: CustomTraining(second)}


@pytest.mark.parametrize("case", [FROZEN_LOGISTIC, STRONG_TANH], ids=lambda case: case.name)
def test_the_users_functions_are_called_stage_after_stage(case: ChainCase):
    retraining = Retraining(chain_of(case, solved(case)), query_of(case, reduction="none"), "pretrain", by_newton(case))
    weights = torch.stack([leave_out(23, run, 0.5) for run in ((), (1,), (2, 3))]) * mean_weights(case.stages[0])
    found = retraining.losses([(), (1,), (2, 3)], 0.5, 0)
    torch.testing.assert_close(found, solved_again(case, 0, weights, steps=12), rtol=1e-9, atol=1e-12)


def test_a_function_gets_what_it_asks_for():
    case, asked = STRONG_LOGISTIC, list[tuple[Any, ...]]()
    chain = chain_of(case, solved(case))

    def first(weights: Tensor, previous: nn.Module | None, seed: int) -> nn.Module:
        asked.append(("first", weights.clone(), previous, seed))
        model = model_of(case.stages[0], solved(case)[0])
        with torch.no_grad():
            next(iter(model.parameters())).add_(len(asked))
        return model

    def second(weights: Tensor, previous: nn.Module) -> nn.Module:
        asked.append(("second", weights.clone(), flatten(dict(previous.named_parameters()), ["embedding.weight"])))
        return model_of(case.stages[1], solved(case)[1])

    fits = {"pretrain": as_fit(first), "finetune": as_fit(second)}
    assert (fits["pretrain"].is_stochastic, fits["finetune"].is_stochastic) == (True, False)
    retraining = Retraining(chain, query_of(case), "pretrain", fits)
    assert retraining.is_stochastic
    retraining.losses([(), (6,)], 1.0, seed=17)
    assert [a[0] for a in asked] == ["first", "first", "second", "second"]
    assert [a[2:] for a in asked[:2]] == [(None, 17)] * 2
    for given, expected in zip(asked, [leave_out(23, []), leave_out(23, [6]), *[torch.ones(19)] * 2], strict=True):
        assert given[1].dtype == torch.float64
        torch.testing.assert_close(given[1], expected.double(), rtol=0, atol=0)
    trained_before = solved(case)[0]["embedding.weight"].flatten()
    for number, given in enumerate(asked[2:], start=1):
        torch.testing.assert_close(given[2], trained_before + number, rtol=1e-12, atol=0)


def test_a_middle_stage_gets_the_one_before_as_trained_and_may_change_it():
    case = STRONG_LOGISTIC
    chain = chain_of(case, solved(case))
    before = fingerprint_model(chain.stages[0].model)

    def second(weights: Tensor, previous: nn.Module) -> nn.Module:
        assert fingerprint_model(previous) == before
        weights.zero_()
        with torch.no_grad():
            for parameter in previous.parameters():
                parameter.zero_()
        return model_of(case.stages[1], solved(case)[1])

    weights = torch.ones(2, 19, dtype=torch.float64)
    CustomTraining(second)(chain["finetune"], weights, None, 0)
    assert fingerprint_model(chain.stages[0].model) == before
    assert bool((weights == 1).all())


def test_one_module_that_is_trained_again_and_again_is_many_copies():
    chain, model = linear(), nn.Linear(2, 1).double()

    def fit(weights: Tensor) -> nn.Module:
        with torch.no_grad():
            model.weight.fill_(float(weights.sum()))
        return model

    found = CustomTraining(fit)(chain["s"], torch.tensor([[1.0] * 6, [0.5] * 6]), None, 0)
    assert found["weight"][:, 0, 0].tolist() == [6.0, 3.0]


def second_of(model: Callable[[nn.Module], Any]) -> Callable[[], object]:
    """The second stage's fit returns this of the stage before."""

    def call() -> object:
        case = FROZEN_RIDGE
        fits = by_newton(case) | {"finetune": CustomTraining(lambda weights, previous: model(previous))}
        return Retraining(chain_of(case, solved(case)), query_of(case), "pretrain", fits).losses([(1,)], 1.0, 0)

    return call


def without_previous() -> object:
    """Said before anything is trained."""
    case = FROZEN_RIDGE
    fits = by_newton(case)
    fits["finetune"] = fits["pretrain"]
    return Retraining(chain_of(case, solved(case)), query_of(case), "pretrain", fits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (second_of(lambda previous: None), "stage 'finetune': fit must return the trained module, got NoneType"),
        (second_of(lambda previous: nn.Linear(2, 2)), r"'finetune': .* has no parameter 'embedding.weight' of shape"),
        (
            second_of(lambda previous: model_of(FROZEN_RIDGE.stages[1], solved(FROZEN_RIDGE)[1])),
            "'finetune': .* has another 'embedding.weight' than the stage before",
        ),
        (without_previous, r"'finetune': its fit must take the stage before, .*: def fit\(weights, previous\)"),
        (lambda: as_fit(3), r"a fit must be Resolve\(\), Steps\(...\) or a function .*, got int"),
        (
            lambda: Retraining(chain_of(FROZEN_RIDGE, solved(FROZEN_RIDGE)), query_of(FROZEN_RIDGE), "pretrain", {}),
            "no fit for stage 'pretrain', .* give one for each of 'pretrain', 'finetune'",
        ),
    ],
)
def test_a_fit_that_does_not_fit_is_refused_in_one_line(call: Callable[[], object], message: str):
    with pytest.raises(DescriptionError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Several stages by steps, and what identifies a fit


@pytest.mark.parametrize("way", ["SGD", "cold"])
@pytest.mark.parametrize(("case", "position"), [(THREE, 0), (THREE, 1), (STRONG_TANH, 0), (STRONG_TANH, 1)])
def test_later_stages_start_from_the_one_trained_before(case: ChainCase, position: int, way: str):
    how, fit = WAYS[way][0], WAYS[way][1]()
    found = again(case, position, fit).losses([(), (2, 3)], 0.7, seed=4)
    for place, run in enumerate([(), (2, 3)]):
        torch.testing.assert_close(found[place], query_after(case, position, run, 0.7, how, 4), rtol=1e-10, atol=1e-12)


def test_a_description_tells_fits_apart():
    state = saved()
    fits = [
        Resolve(),
        Resolve(1e-9),
        Resolve(proximity=0.1),
        Steps(Adam(), 3, 4),
        Steps(Adam(state=state), 3, 4),
        Steps(Adam(state=saved(steps=2)), 3, 4),
        Steps(SGD(), 3, 4),
        Steps(SGD(momentum=0.1), 3, 4),
        Steps(SGD(), 3, 4, "cold"),
        Steps(SGD(), 3, 4, schedule="cosine"),
        CustomTraining(lambda weights: nn.Linear(1, 1)),
        CustomTraining(lambda weights, seed: nn.Linear(1, 1)),
    ]
    known = [str(described(fit)) for fit in fits]
    assert len(set(known)) == len(fits)
    assert [str(described(fit)) for fit in fits] == known
    assert described(Steps(Adam(state=saved()), 3, 4)) == described(fits[4])


def test_unflatten_is_the_oracles():
    """The order of the own parameters is that of the module, as a saved optimiser state has it."""
    bound = chain_of(UNTIED, solved(UNTIED)).bound_stages[1]
    vector = torch.arange(float(bound.trained.size), dtype=torch.float64)
    like = unflatten(vector, solved(UNTIED)[1], own_names(UNTIED.stages[1]))
    assert all(torch.equal(bound.trained.unflatten(vector)[name], value) for name, value in like.items())
