"""The first two products of a curvature are compared: wrong ones are refused, right ones never."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace import CG, Direct, EarlyStopping, Lanczos, Normal
from stagetrace.curvature import plan as planning
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.operator import DiagonalOperator
from stagetrace.curvature.plan import make_plan
from stagetrace.curvature.symmetry import FirstProducts
from stagetrace.errors import DifferentiationError
from stagetrace.solvers import solve
from tests.curvature.specimens import MLP, SPECIMENS, N, Specimen
from tests.curvature.test_products import by_matrix, named, operator, vectors

DIM = 400


def turned(part: float) -> Tensor:
    """A symmetric matrix and a part of one that is not."""
    drawn = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return drawn + drawn.T + part * (drawn - drawn.T)


def test_a_matrix_that_is_not_symmetric_is_refused_at_the_second_product():
    first, H = FirstProducts("stage 'only'", "Hessian", 1e-7), turned(0.3)
    v = vectors(DIM, 2)
    first.see(v[:, :1], H @ v[:, :1])
    message = r"stage 'only': the Hessian of all its examples is not symmetric \(u'Hv = .*use curvature=Identity\(\)"
    with pytest.raises(DifferentiationError, match=message):
        first.see(v[:, 1:], H @ v[:, 1:])


def test_vectors_that_are_parallel_or_zero_tell_nothing_and_are_passed_over():
    first, H, v = FirstProducts("", "Hessian", 1e-7), turned(0.3), vectors(DIM, 2)
    u = v[:, :1]
    for vector in (0 * u, u, -2 * u, u + 1e-3 * v[:, 1:], 0 * u):
        first.see(vector, H @ vector)
    with pytest.raises(DifferentiationError, match="not symmetric"):
        first.see(v[:, 1:], H @ v[:, 1:])


def test_two_columns_at_once_are_compared():
    with pytest.raises(DifferentiationError, match="not symmetric"):
        FirstProducts("", "Hessian", 1e-7).see(vectors(DIM, 2), turned(0.3) @ vectors(DIM, 2))


def test_what_is_kept_is_not_what_the_caller_changes():
    first, H, v = FirstProducts("", "Hessian", 1e-12), turned(0.0), vectors(DIM, 2)
    u, image = v[:, :1].clone(), H @ v[:, :1]
    first.see(u, image)
    u.zero_()
    image.mul_(7.0)
    first.see(v[:, 1:], H @ v[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rounding_is_no_asymmetry(dtype: torch.dtype):
    H, eps = turned(0.0), torch.finfo(dtype).eps
    axes = torch.eye(DIM, dtype=torch.float64)
    noise = torch.Generator().manual_seed(3)
    for trial in range(40):
        pair = vectors(DIM, 2) if trial == 0 else torch.randn(DIM, 2, generator=noise, dtype=torch.float64)
        for u, v in ((pair[:, 0], pair[:, 1]), (axes[trial], axes[trial + 1]), (pair[:, 0], H @ pair[:, 0])):
            both = torch.stack([u, v], dim=1)
            products = H @ both
            products += 10 * eps * products.abs().max(dim=0).values * torch.randn(DIM, 2, generator=noise)
            FirstProducts("", "Hessian", eps).see(both.to(dtype), products.to(dtype))


@named(*SPECIMENS)
@by_matrix
def test_right_products_are_never_refused(specimen: Specimen, matrix: Any):
    for dtype in (torch.float64, torch.float32):
        found = operator(specimen, matrix, "retained graph", dtype=dtype)
        _ = found @ torch.eye(found.size, 2, dtype=dtype)
        again = operator(specimen, matrix, "retained graph", dtype=dtype)
        u = vectors(again.size, 1, dtype)
        _ = again @ (again @ u)


@pytest.mark.parametrize(
    "solver",
    [Lanczos(), Lanczos(damping=0.1), CG(damping=1.0), Normal(CG(), damping=0.1), Direct(), EarlyStopping(time=1.0)],
    ids=lambda solver: type(solver).__name__,
)
def test_every_solver_s_products_are_compared(solver: Any, monkeypatch: pytest.MonkeyPatch):
    right = planning.RETAINED["Hessian"]
    plan = make_plan(MLP.risk(), "Hessian", range(N), N, 2**30)

    def wrong(risk: Any, batch: Any) -> Any:
        product = right(risk, batch)
        return lambda columns: product(columns) + 0.5 * product(torch.roll(columns, 1, dims=0))

    monkeypatch.setitem(planning.RETAINED, "Hessian", wrong)
    found = MeanCurvature(MLP.risk(), range(N), plan) + DiagonalOperator(torch.full((31,), 2.0, dtype=torch.float64))
    with pytest.raises(DifferentiationError, match="the Hessian of all its examples is not symmetric"):
        solve(found, vectors(31, 1)[:, 0], solver)
