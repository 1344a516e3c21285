"""Minima against closed forms, SciPy and a dense Newton; weights, honesty, saddles, refusals."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.func import grad, hessian
from torch.utils.data import TensorDataset

from stagetrace import Chain, Stage
from stagetrace.curvature.operator import DenseOperator
from stagetrace.errors import DataError, DescriptionError, SolveError
from stagetrace.objectives import Classification, Regression
from stagetrace.solvers.spectrum import lowest_ritz_pair
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.fingerprint import fingerprint_model
from stagetrace.validation.newton import minimise
from stagetrace.validation.newton_direction import newton_direction
from stagetrace.validation.preconditioner import Preconditioner
from stagetrace.validation.resolving import leave_out
from tests.chains import FROZEN_LOGISTIC, FROZEN_TANH, REPRESENTATIVES, STRONG_TANH, ChainCase, chain_of, each_place
from tests.oracles import example_gradients, flatten, mean_weights, objective, own_names, solved, stage_hessian
from tests.oracles import minimise as dense_minimise


def ridge(weight_decay: float = 0.1, **settings: Any) -> tuple[Chain, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.randn(17, k, generator=generator, dtype=torch.float64) for k in (4, 1))
    settings = {"data": TensorDataset(x, y), "batch_size": 5} | settings
    model = nn.Linear(4, 1, bias=False).double()
    return Chain(Stage("fit", model=model, objective=Regression(), weight_decay=weight_decay, **settings)), x, y


def moved(case: ChainCase, position: int, by: float) -> BoundStage:
    """A stage of the solved chain, its own parameters moved away from the solution."""
    bound = chain_of(case, solved(case)).bound_stages[position]
    model = copy.deepcopy(bound.stage.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in bound.trained_values:
                parameter += by * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return BoundStage.of(replace(bound.stage, model=model), bound.previous)


def truth(case: ChainCase, position: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The own parameters that the dense Newton found, and the previous stage's point."""
    points = solved(case)
    stage = case.stages[position]
    return flatten(points[position], own_names(stage)), points[position - 1] if position else {}


# The minimum


@pytest.mark.parametrize("weight_decay", [0.1, 0.0])
@pytest.mark.parametrize("removed", [[], [3], [0, 1, 16]])
def test_weighted_ridge_equals_the_closed_form(weight_decay: float, removed: list[int]):
    chain, x, y = ridge(weight_decay)
    weights = leave_out(17, removed) * torch.linspace(0.5, 2, 17).double()
    found = minimise(chain["fit"], weights, tolerance=1e-12)
    normal = 2 * x.T @ (weights[:, None] * x) / 17 + weight_decay * torch.eye(4).double()
    expected = torch.linalg.solve(normal, 2 * x.T @ (weights[:, None] * y) / 17)
    assert found.converged
    torch.testing.assert_close(found.values["weight"], expected.T, rtol=1e-10, atol=1e-12)
    residuals = x @ expected - y
    value = (weights[:, None] * residuals**2).sum() / 17 + weight_decay / 2 * expected.square().sum()
    assert found.objective == pytest.approx(float(value), rel=1e-12)
    assert found.smallest_ritz == pytest.approx(float(torch.linalg.eigvalsh(normal)[0]), rel=1e-8)


@each_place()
def test_agrees_with_a_dense_newton(case: ChainCase, position: int):
    bound = moved(case, position, 0.02)
    found = minimise(bound, tolerance=1e-11)
    assert found.converged
    assert found.gradient_norm <= 1e-11
    torch.testing.assert_close(bound.trained.flatten(found.values), truth(case, position)[0], rtol=1e-7, atol=1e-8)


def test_agrees_with_scipy_from_far_away():
    case, stage = FROZEN_LOGISTIC, FROZEN_LOGISTIC.stages[0]

    def value(own: Tensor) -> Tensor:
        return objective(stage, own, {}, mean_weights(stage))

    bound = moved(case, 0, 3.0)
    start = bound.trained.flatten(bound.trained_values)
    scipys = scipy.optimize.minimize(
        lambda v: float(value(torch.from_numpy(v))),
        start.numpy(),
        jac=lambda v: grad(value)(torch.from_numpy(v)).numpy(),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    found = minimise(bound)
    torch.testing.assert_close(bound.trained.flatten(found.values), torch.from_numpy(scipys.x), rtol=1e-6, atol=1e-7)
    assert found.objective == pytest.approx(scipys.fun, rel=1e-12)
    assert found.steps <= 15


@pytest.mark.slow
@each_place()
def test_the_gradient_norm_is_the_true_one_wherever_it_stops(case: ChainCase, position: int):
    stage, previous = case.stages[position], truth(case, position)[1]
    bound = moved(case, position, 0.1)
    for steps in (1, 2, 50):
        found = minimise(bound, max_steps=steps, tolerance=1e-10)
        point = flatten({**bound.inherited_values, **found.values}, own_names(stage))
        true = grad(lambda own: objective(stage, own, previous, mean_weights(stage)))(point)
        assert found.gradient_norm == pytest.approx(float(true.norm()), rel=1e-6, abs=1e-14)
        assert found.converged == (found.gradient_norm <= 1e-10)


def test_reaches_ten_digits_with_few_steps():
    found = minimise(moved(FROZEN_TANH, 0, 0.05), tolerance=1e-10)
    assert found.gradient_norm <= 1e-10
    assert found.steps <= 8


def test_stopping_early_is_said():
    found = minimise(moved(FROZEN_TANH, 0, 0.1), max_steps=1)
    assert not found.converged
    with pytest.raises(SolveError, match=r"'pretrain': no minimum found in 1 Newton steps .* raise\s+max_steps"):
        found.checked()


# Weights


@pytest.mark.parametrize("index", [0, 7, 16])
def test_weight_zero_is_the_data_without_the_example_and_n_kept(index: int):
    """`(1/n) sum without i + decay/2` is `(n-1)/n` times `mean without i + n/(n-1) decay/2`."""
    chain, x, y = ridge(0.1)
    others = torch.arange(17) != index
    without, _, _ = ridge(0.1 * 17 / 16, data=TensorDataset(x[others], y[others]))
    left_out = minimise(chain["fit"], leave_out(17, [index]), tolerance=1e-11).values["weight"]
    torch.testing.assert_close(left_out, minimise(without["fit"], tolerance=1e-11).values["weight"], rtol=1e-9, atol=0)
    assert (left_out - minimise(chain["fit"]).values["weight"]).abs().max() > 1e-4


def test_an_example_of_weight_zero_is_not_even_evaluated():
    _, x, y = ridge()
    x[3] = float("nan")
    chain, _, _ = ridge(data=TensorDataset(x, y))
    assert minimise(chain["fit"], leave_out(17, [3])).converged
    with pytest.raises(DataError, match="loss of example 3 is nan"):
        minimise(chain["fit"])


@pytest.mark.parametrize(
    "settings", [pytest.param({"batch_size": 1}, marks=pytest.mark.slow), {"batch_size": 100}], ids=str
)
@pytest.mark.parametrize("memory", [1, 2**31])
def test_batches_and_memory_change_nothing(settings: dict[str, Any], memory: int):
    bound = moved(FROZEN_TANH, 0, 0.05)
    expected = minimise(bound, tolerance=1e-11)
    same = BoundStage.of(replace(bound.stage, **settings), bound.previous)
    found = minimise(same, tolerance=1e-11, memory=memory)
    for name, value in expected.values.items():
        torch.testing.assert_close(found.values[name], value, rtol=1e-8, atol=1e-9)


# Where the curvature is not positive


class Product(nn.Module):
    """`v tanh(u x)`: a saddle at u = v = 0."""

    def __init__(self, u: float, v: float) -> None:
        super().__init__()
        self.u, self.v = (nn.Parameter(torch.tensor([[k]], dtype=torch.float64)) for k in (u, v))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.u) @ self.v


def saddle(u: float, v: float) -> BoundStage:
    x = torch.linspace(-1, 1, 9).double().unsqueeze(1)
    stage = Stage("s", model=Product(u, v), objective=Regression(), data=TensorDataset(x, x), weight_decay=0.01)
    return Chain(stage)["s"]


def curvature_at(bound: BoundStage, values: dict[str, Tensor]) -> Tensor:
    x = torch.linspace(-1, 1, 9).double()

    def value(own: Tensor) -> Tensor:
        return (own[1] * torch.tanh(own[0] * x) - x).square().mean() + 0.005 * own.square().sum()

    return torch.linalg.eigvalsh(hessian(value)(bound.trained.flatten(values)))


@pytest.mark.parametrize(("u", "v"), [(0.0, 0.0), (1e-3, -1e-3), (0.1, 0.0), (0.5, -0.5), (1e-12, 1e-12)])
def test_an_indefinite_start_is_left_for_a_strict_minimum(u: float, v: float):
    bound = saddle(u, v)
    assert curvature_at(bound, bound.trained_values)[0] < 0
    found = minimise(bound, tolerance=1e-10)
    assert found.converged
    assert found.smallest_ritz > 0
    assert curvature_at(bound, found.values)[0] > 0.005
    assert found.objective < 0.1


def test_without_strict_a_saddle_passes_for_stationary():
    found = minimise(saddle(0.0, 0.0), strict=False)
    assert (found.converged, found.steps, found.gradient_norm) == (True, 0, 0.0)


@pytest.mark.parametrize("signs", ["positive", "indefinite"])
def test_the_direction_solves_newtons_equations_or_descends(signs: str):
    generator = torch.Generator().manual_seed(3)
    Q, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    values = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0, 4.0]).double() - (1.0 if signs == "indefinite" else 0.0)
    H, g = Q @ torch.diag(values) @ Q.T, torch.randn(6, generator=generator, dtype=torch.float64)
    direction = newton_direction(DenseOperator(H), g, 1e-12, 100, longest=1.0)
    assert float(g @ direction.step) < 0
    assert direction.ritz >= values[0] - 1e-9
    if signs == "positive":
        torch.testing.assert_close(direction.step, -torch.linalg.solve(H, g), rtol=1e-8, atol=1e-9)
        assert direction.ritz == pytest.approx(0.1, rel=1e-6)
    else:
        assert direction.ritz <= 0
        assert float(direction.step @ H @ direction.step) < 0
    lowest = lowest_ritz_pair(DenseOperator(H), 6)
    assert lowest.value == pytest.approx(float(values[0]), rel=1e-9)
    assert lowest.largest == pytest.approx(float(values[-1]), rel=1e-9)
    torch.testing.assert_close(H @ lowest.vector, lowest.value * lowest.vector, rtol=1e-7, atol=1e-9)


# A pull towards the start

SMALL = (FROZEN_LOGISTIC, FROZEN_TANH, STRONG_TANH)
SMALL_PLACES = [(case, position) for case in SMALL for position in (0, 1)]
each_small = pytest.mark.parametrize(
    ("case", "position"),
    [
        pytest.param(
            case, place, id=f"{case.name}-{place}", marks=[pytest.mark.slow] * (case.name not in REPRESENTATIVES)
        )
        for case, place in SMALL_PLACES
    ],
)


@each_small
def test_proximity_is_a_pull_towards_the_start(case: ChainCase, position: int):
    """The dense Newton on the written-out objective, from a point that is no minimum of the rest."""
    stage, previous = case.stages[position], truth(case, position)[1]
    bound, proximity = moved(case, position, 0.3), 0.2
    start = bound.trained.flatten(bound.trained_values)
    weights = leave_out(len(stage.x), [3]) / len(stage.x)
    expected = dense_minimise(
        lambda own: objective(stage, own, previous, weights) + proximity / 2 * (own - start).square().sum(), start
    )
    found = minimise(bound, leave_out(len(stage.x), [3]), proximity=proximity, tolerance=1e-12)
    torch.testing.assert_close(bound.trained.flatten(found.values), expected, rtol=1e-9, atol=1e-10)
    away = (expected - start).square().sum()
    value = objective(stage, expected, previous, weights) + proximity / 2 * away
    assert found.objective == pytest.approx(float(value), rel=1e-12)
    assert found.converged
    assert found.smallest_ritz > 0
    assert float((expected - truth(case, position)[0]).abs().max()) > 1e-2


@each_small
@pytest.mark.parametrize("proximity", [0.0, 1e-3, 1.0])
def test_what_an_example_moves_is_a_damped_solve(case: ChainCase, position: int, proximity: float):
    """`dx/dw_i = -(H + proximity I)^-1 grad loss_i / n` at the minimum, by a central difference."""
    bound, h, n = chain_of(case, solved(case)).bound_stages[position], 1e-4, len(case.stages[position].x)
    ends = [
        bound.trained.flatten(minimise(bound, weights, proximity=proximity, tolerance=1e-13, strict=False).values)
        for weights in (torch.ones(n).double().index_fill(0, torch.tensor(2), 1 + sign * h) for sign in (1, -1))
    ]
    damped = stage_hessian(case, position) + proximity * torch.eye(bound.trained.size, dtype=torch.float64)
    expected = -torch.linalg.solve(damped, example_gradients(case, position)[:, 2]) / n
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * h), expected, rtol=1e-4, atol=1e-6 * float(expected.norm()))


# With a preconditioner


def as_matrix(known: Preconditioner | None, size: int) -> Tensor:
    assert known is not None
    return known @ torch.eye(size, dtype=torch.float64)


@each_small
@pytest.mark.parametrize("proximity", [0.0, 0.1])
def test_a_preconditioner_makes_all_eigenvalues_alike(case: ChainCase, position: int, proximity: float):
    bound = chain_of(case, solved(case)).bound_stages[position]
    inverse = as_matrix(Preconditioner.of(bound, proximity), bound.trained.size)
    torch.testing.assert_close(inverse, inverse.T, rtol=0, atol=1e-5 * float(inverse.norm()))
    # a softmax without decay on its shift would be flat; these have decay
    damped = stage_hessian(case, position) + proximity * torch.eye(bound.trained.size, dtype=torch.float64)
    values = torch.linalg.eigvals(inverse @ damped).real
    assert float(values.min()) > 1 / 1.51
    assert float(values.max()) < 1.51
    before = torch.linalg.eigvalsh(damped)
    assert float(values.max() / values.min()) < float(before[-1] / before[0])


@each_small
def test_a_preconditioner_leads_to_the_same_minimum_with_fewer_products(case: ChainCase, position: int):
    known = Preconditioner.of(chain_of(case, solved(case)).bound_stages[position])
    bound, weights = moved(case, position, 1e-3), leave_out(len(case.stages[position].x), [1], 0.1)
    alone = minimise(bound, weights, tolerance=1e-11, strict=False)
    helped = minimise(bound, weights, tolerance=1e-11, strict=False, preconditioner=known)
    assert alone.converged
    assert helped.converged
    assert helped.products < alone.products
    assert helped.products <= 0.75 * alone.products or bound.trained.size < 10
    point, other = (bound.trained.flatten(found.values) for found in (helped, alone))
    torch.testing.assert_close(point, other, rtol=1e-8, atol=1e-8)
    stage, previous = case.stages[position], truth(case, position)[1]
    true = grad(lambda own: objective(stage, own, previous, weights / len(weights)))(point)
    assert float(true.norm()) <= 1.01e-11


@pytest.mark.parametrize(("u", "v"), [(0.0, 0.0), (0.1, 0.0), (0.5, -0.5)])
def test_a_preconditioner_is_positive_definite_where_the_hessian_is_not(u: float, v: float):
    bound = saddle(u, v)
    assert curvature_at(bound, bound.trained_values)[0] < 0
    inverse = as_matrix(Preconditioner.of(bound), 2)
    assert float(torch.linalg.eigvalsh((inverse + inverse.T) / 2)[0]) > 0.05
    found = minimise(bound, tolerance=1e-10, preconditioner=Preconditioner.of(bound))
    assert found.converged
    assert curvature_at(bound, found.values)[0] > 0.005
    assert found.objective < 0.1


@pytest.mark.parametrize("lowest", [1e-12, 1e-6])
def test_a_preconditioner_is_positive_definite_at_any_condition(lowest: float):
    """Single precision must not turn the sign along the stiffest directions, which it shrinks by a million."""
    generator = torch.Generator().manual_seed(2)
    size = 150
    Q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    spectrum = torch.cat([torch.ones(30), torch.full((90,), lowest), torch.logspace(-5, 0, 30)]).double()
    x = (spectrum * size / 2).sqrt().unsqueeze(1) * Q.T  # H = 2/n x'x
    model, data = nn.Linear(size, 1, bias=False).double(), TensorDataset(x, torch.zeros(size, 1).double())
    known = Preconditioner.of(Chain(Stage("s", model=model, objective=Regression(), data=data))["s"])
    assert known is not None
    top = Q[:, :30] @ torch.randn(30, 20, generator=generator, dtype=torch.float64)
    for vector in (*Q.T, *top.T, *torch.randn(20, size, generator=generator, dtype=torch.float64)):
        assert float(vector @ (known @ vector)) > 0.5 * float(vector @ vector)  # all of M^-1 is at least 1


def test_negative_curvature_is_found_with_a_preconditioner_too():
    generator = torch.Generator().manual_seed(3)
    Q, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    g = torch.randn(6, generator=generator, dtype=torch.float64)
    spectrum = torch.tensor([0.01, 0.5, 1.0, 2.0, 3.0, 40.0]).double()
    inverse = Q @ torch.diag(1 / spectrum) @ Q.T
    for sign in (1.0, -1.0):
        H = Q @ torch.diag(spectrum * torch.tensor([sign, 1.0, 1.0, 1.0, 1.0, 1.0]).double()) @ Q.T
        direction = newton_direction(DenseOperator(H), g, 1e-10, 100, 1.0, DenseOperator(inverse))
        assert float(g @ direction.step) < 0
        if sign > 0:
            torch.testing.assert_close(direction.step, -torch.linalg.solve(H, g), rtol=1e-7, atol=1e-8)
            assert direction.products <= 2
            assert direction.ritz == pytest.approx(1.0, rel=1e-6)  # of M^-1 H
        else:
            assert direction.ritz <= 0
            assert float(direction.step @ H @ direction.step) < 0
            assert direction.curvature == pytest.approx(float(direction.step @ H @ direction.step), rel=1e-6)


def test_no_preconditioner_is_made_for_many_parameters():
    bound = saddle(0.5, 0.5)
    assert Preconditioner.of(bound, max_size=1) is None
    assert Preconditioner.of(bound, max_size=2) is not None


# What it leaves alone, and what it refuses


def test_the_model_is_not_touched():
    bound = moved(FROZEN_TANH, 0, 0.05)
    model = bound.stage.model.train()
    before = fingerprint_model(model)
    minimise(bound)
    assert fingerprint_model(model) == before
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_float32_is_refused_with_the_remedy():
    stage = Stage(
        "fit", model=nn.Linear(4, 1), objective=Regression(), data=TensorDataset(torch.ones(2, 4), torch.ones(2, 1))
    )
    with pytest.raises(
        DescriptionError, match=r"'fit': parameter 'weight' is torch.float32.*type model=model.double\(\)"
    ):
        minimise(Chain(stage)["fit"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(16), r"one weight per example, \[17\], got \[16\]"),
        ([1.0] * 17, "got list"),
        (-torch.ones(17), "example 0 has the weight -1.0"),
        (torch.ones(17).index_fill(0, torch.tensor([4]), float("inf")), "example 4 has the weight inf"),
    ],
)
def test_wrong_weights_are_refused(weights: Any, message: str):
    with pytest.raises(DescriptionError, match=message):
        minimise(ridge()[0]["fit"], weights)


@pytest.mark.parametrize(
    "settings",
    [{"tolerance": 0.0}, {"max_steps": 0}, {"cg_steps": 0}, {"memory": 0}, {"proximity": -1.0}],
    ids=str,
)
def test_wrong_settings_are_refused(settings: dict[str, Any]):
    with pytest.raises(DescriptionError, match=next(iter(settings))):
        minimise(ridge()[0]["fit"], **settings)


def test_a_classifier_without_decay_that_separates_is_said_to_have_no_minimum():
    """Its loss falls for ever; the gradient norm alone would soon pass."""
    x = torch.tensor([[-1.0], [1.0]]).double()
    data = TensorDataset(x, torch.tensor([0, 1]))
    stage = Stage("s", model=nn.Linear(1, 2).double(), objective=Classification(), data=data)
    found = minimise(Chain(stage)["s"], tolerance=1e-12, max_steps=5)
    assert not found.converged
