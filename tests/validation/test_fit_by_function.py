"""Training again by the user's own function."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace.errors import DescriptionError
from stagetrace.stages.fingerprint import fingerprint_model
from stagetrace.validation.fits import CustomTraining, as_fit
from stagetrace.validation.resolving import leave_out
from stagetrace.validation.retrain import Retraining
from tests.chains import FROZEN_LOGISTIC, FROZEN_RIDGE, STRONG_LOGISTIC, STRONG_TANH, ChainCase, chain_of, query_of
from tests.oracles import complete, flatten, mean_weights, minimise, objective, own_solution, solved, solved_again
from tests.validation.fits import linear, model_of


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
    torch.testing.assert_close(found, solved_again(case, 0, weights), rtol=1e-9, atol=1e-12)


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
        (lambda: as_fit(3), r"a fit must be Rerun\(\), Resolve\(\), Steps\(...\) or a function .*, got int"),
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
