"""Models that compute more coarsely than their parameters are: judged by the arithmetic they use, and still right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Direct, GaussNewton, Hessian, Query, Stage, trace
from stagetrace.curvature.operator import LinearOperator
from stagetrace.curvature.rounding import RoundedTo
from stagetrace.errors import SolveError
from stagetrace.objectives import Classification
from stagetrace.solvers import System, Tikhonov, solve
from stagetrace.solvers.base import Status

N = 12
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(N) % 3


def normed(z: Tensor) -> Tensor:
    return z * torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + 1e-5)


def single(z: Tensor) -> Tensor:
    """The same in single precision, as language models have it."""
    return normed(z.float()).to(z.dtype)


def half(z: Tensor) -> Tensor:
    return torch.tanh(z.bfloat16()).to(z.dtype)


def constant(z: Tensor) -> Tensor:
    """Single-precision numbers that no result is rounded to."""
    return torch.tanh(z * torch.ones(5) + torch.full((5,), 0.1) + torch.arange(5.0))


class Net(nn.Module):
    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(4, 5), between, nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def stage(between: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> Stage:
    torch.manual_seed(0)
    model = Net(between).to(dtype)
    return Stage("only", model=model, objective=Classification(), data=TensorDataset(X, Y), weight_decay=2.0)


def scores(between: Callable[[Tensor], Tensor], **settings: Any) -> Tensor:
    one = stage(between)
    return trace(Chain(one), Query(one.data), **settings)["only"].values


@pytest.mark.parametrize(
    ("between", "dtype", "found"),
    [
        (normed, torch.float64, torch.float64),
        (constant, torch.float64, torch.float64),
        (single, torch.float64, torch.float32),
        (half, torch.float64, torch.bfloat16),
        (half, torch.float32, torch.bfloat16),
        (single, torch.float32, torch.float32),
    ],
    ids=["double", "constants", "single", "half", "half in single", "single in single"],
)
def test_the_coarsest_arithmetic_is_seen(between: Callable[[Tensor], Tensor], dtype: torch.dtype, found: torch.dtype):
    bound = Chain(stage(between, dtype))["only"]
    (batch,) = bound.risk.read([range(4)])
    with torch.no_grad(), RoundedTo(dtype) as seen:
        bound.risk.losses(bound.risk.trained_values, bound.risk.inherited_values, batch)
    assert seen.coarsest == found
    for choice in (Hessian(), GaussNewton()):
        assert choice.operator(bound).rounding == torch.finfo(found).eps


@pytest.mark.parametrize("curvature", [Hessian(), GaussNewton()], ids=lambda choice: type(choice).__name__)
def test_single_precision_inside_a_double_model_is_no_asymmetry(curvature: Any):
    found, exact = (scores(between, curvature=curvature, solver=Direct()) for between in (single, normed))
    assert float((found - exact).norm() / exact.norm()) < 1e-4
    assert not torch.equal(found, exact)


def test_half_precision_inside_is_no_asymmetry_either():
    found, exact = (scores(b, curvature=GaussNewton(), solver=Direct()) for b in (half, torch.tanh))
    assert float((found - exact).norm() / exact.norm()) < 0.1


def test_a_solve_is_held_to_what_the_arithmetic_allows():
    bound = Chain(stage(single))["only"]
    operator = Hessian().operator(bound)
    solution = solve(operator, torch.ones(operator.size, dtype=torch.float64), Direct())
    assert solution.status is Status.CONVERGED
    assert solution.tolerance == torch.finfo(torch.float32).eps ** 0.5
    exact = Hessian().operator(Chain(stage(normed))["only"])
    of_exact = solve(exact, torch.ones(operator.size, dtype=torch.float64), Direct())
    assert of_exact.tolerance == torch.finfo(torch.float64).eps ** 0.5


class Crooked(LinearOperator):
    """Another operator and a millionth of a matrix that is not symmetric."""

    def __init__(self, inner: LinearOperator) -> None:
        self.inner = inner
        self.size, self.dtype, self.device = inner.size, inner.dtype, inner.device

    @property
    def rounding(self) -> float:
        return self.inner.rounding

    def apply(self, vectors: Tensor) -> Tensor:
        return self.inner.apply(vectors) + 1e-6 * torch.roll(vectors, 1, dims=0)


def test_asymmetry_in_an_exact_model_is_still_refused():
    operator = Crooked(Hessian().operator(Chain(stage(normed))["only"]))
    with pytest.raises(SolveError, match=r"not symmetric: entries differ from their mirror by up to 1\.0e-06"):
        Direct().prepare(System(operator, Tikhonov()))
