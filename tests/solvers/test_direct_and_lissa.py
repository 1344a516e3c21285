"""Direct's refusals and LiSSA's divergence; the filters' own arithmetic; sums in float64."""

import numpy as np
import pytest
import torch

from stagetrace.curvature.operator import DenseOperator, DiagonalOperator, IdentityOperator
from stagetrace.errors import DescriptionError, SolveError
from stagetrace.solvers import Direct, LiSSA, Shift, Status, System, Tikhonov, solve
from stagetrace.solvers.vectors import CHUNK, dot, norm_of_sum
from tests.solvers.cases import (
    SPECTRA,
    Average,
    Counting,
    error,
    float64,
    oracle,
    prepared,
    random_operator,
    random_rhs,
)

SPD, ILL, INDEFINITE, LOW_RANK, FLOAT32 = SPECTRA


def test_direct_without_damping_is_the_plain_inverse() -> None:
    operator = random_operator(INDEFINITE)
    rhs = random_rhs(operator, 2)
    solution = solve(operator, rhs, Direct())
    assert str(solution.system) == "H x = b"
    assert error(solution.value, oracle(operator, rhs, squared=False, damping=0.0)) <= 1e-11
    assert solution.spectrum is not None
    np.testing.assert_allclose(solution.spectrum.ritz, np.linalg.eigvalsh(float64(operator.matrix)), atol=1e-12)


def test_direct_pays_for_its_matrix_once() -> None:
    operator = Counting(random_operator(SPD))
    inverse = prepared(Direct(0.05), operator)
    assert operator.columns == 60
    first, second = inverse.solve(random_rhs(operator)), inverse.solve(random_rhs(operator))
    assert (first.products, second.products) == (60, 0)


KNOWN = {
    "identity": IdentityOperator(60, torch.float64),
    "diagonal": DiagonalOperator(torch.linspace(3.0, -1.0, 60).double()),
    "dense": random_operator(INDEFINITE),
    "diagonals": DiagonalOperator(torch.linspace(3.0, -1.0, 60).double()) + IdentityOperator(60, torch.float64),
    "dense and equal diagonals": random_operator(INDEFINITE) + DiagonalOperator(torch.full((60,), 0.3).double()),
    "equal diagonals and dense": IdentityOperator(60, torch.float64) + random_operator(INDEFINITE),
}


@pytest.mark.parametrize("operator", KNOWN.values(), ids=KNOWN.keys())
def test_an_operator_that_knows_its_eigenvectors_is_solved_in_them_without_a_product(operator) -> None:
    eigen, matrix = operator.eigen(), float64(operator.to_dense())
    assert eigen is not None
    np.testing.assert_allclose(eigen.values.sort().values, np.linalg.eigvalsh(matrix), atol=1e-12)
    rhs = random_rhs(operator, 2)
    solution = solve(operator, rhs, Direct(0.05))
    assert (solution.products, solution.converged) == (0, True)
    dense = DenseOperator(operator.to_dense())
    assert error(solution.value, oracle(dense, rhs, squared=True)) <= 1e-11
    assert list(solution.spectrum.ritz) == sorted(solution.spectrum.ritz)


def test_a_sum_of_operators_in_different_bases_does_not_know_its_own() -> None:
    assert (random_operator(SPD) + random_operator(SPD, 1)).eigen() is None
    assert (random_operator(SPD) + DiagonalOperator(torch.linspace(0, 1, 60).double())).eigen() is None
    assert (Counting(random_operator(SPD)) + IdentityOperator(60, torch.float64)).eigen() is None


def test_direct_says_that_an_operator_is_singular_and_what_it_left_out() -> None:
    operator = random_operator(LOW_RANK)
    rhs = random_rhs(operator)
    solution = solve(operator, rhs, Direct())
    assert solution.status is Status.SINGULAR
    assert "30 of 60 eigenvalues" in solution.notes[0]
    assert error(solution.value, np.linalg.pinv(float64(operator.matrix), rcond=1e-9) @ float64(rhs)) <= 1e-10
    assert solve(operator, rhs, Direct(1e-6)).status is not Status.SINGULAR


def test_direct_finds_a_shift_that_meets_an_eigenvalue_singular() -> None:
    operator = DiagonalOperator(torch.tensor([-0.5, 1.0], dtype=torch.float64))
    rhs = torch.ones(2, dtype=torch.float64)
    assert solve(operator, rhs, Direct(0.5, Shift)).status is Status.SINGULAR
    assert solve(operator, rhs, Direct(0.5, Tikhonov)).converged


def test_direct_refuses_what_is_too_large_and_names_the_bytes_and_the_alternatives() -> None:
    operator = Counting(DiagonalOperator(torch.ones(20_000)))  # which does not know its eigenvectors
    with pytest.raises(SolveError, match=r"20,000 x 20,000 .* 12.8 GB .*8,192.*Lanczos.*Direct\(max_size=20000\)"):
        prepared(Direct(), operator)


def test_direct_refuses_an_asymmetric_matrix() -> None:
    matrix = random_operator(SPD).matrix.clone()
    matrix[0, 1] += 1e-3
    with pytest.raises(SolveError, match=r"DenseOperator is not symmetric: .* up to 1.0e-03"):
        prepared(Direct(), DenseOperator(matrix))
    prepared(Direct(), random_operator(FLOAT32))  # rounding is no asymmetry


def test_lissa_diverges_on_negative_curvature_and_says_how_much_damping_helps() -> None:
    operator = random_operator(INDEFINITE)
    solution = solve(operator, random_rhs(operator), LiSSA(damping=0.05))
    assert solution.status is Status.DIVERGED
    assert torch.isfinite(solution.value).all()
    assert "raise the damping above" in solution.notes[0]
    with pytest.raises(SolveError, match="diverged"):
        solution.checked()
    assert solve(operator, random_rhs(operator), LiSSA(damping=1.2)).converged


def test_lissa_diverges_when_the_scale_is_too_small() -> None:
    operator = random_operator(SPD)
    solution = solve(operator, random_rhs(operator, 2), LiSSA(damping=0.05, scale=4.9))
    assert solution.statuses == (Status.DIVERGED, Status.DIVERGED)
    assert "raise the scale" in solution.notes[0]
    assert solution.steps < 2000
    assert solve(operator, random_rhs(operator), LiSSA(damping=0.05, scale=5.2)).converged


def test_lissa_survives_products_that_overflow() -> None:
    operator = DenseOperator(torch.tensor([[1e300, -1e300], [-1e300, 1e300]], dtype=torch.float64))
    # The second product is infinity less infinity: a NaN compares as neither large nor small.
    solution = solve(operator, torch.full((2,), 1e10, dtype=torch.float64), LiSSA(scale=1.0))
    assert solution.status is Status.DIVERGED
    assert torch.isfinite(solution.value).all()


@pytest.mark.slow
def test_lissa_drawing_examples_is_seeded_close_and_honest() -> None:
    examples = torch.from_numpy(np.random.default_rng(0).standard_normal((400, 10)))
    operator = Average(examples)
    rhs = random_rhs(operator)
    dense = DenseOperator(operator.to_dense())
    solver = LiSSA(damping=0.1, max_steps=1500, examples=100, rtol=0.5, scale=3.0)
    first, again = solve(operator, rhs, solver), solve(operator, rhs, solver)
    other = solve(operator, rhs, LiSSA(damping=0.1, max_steps=1500, examples=100, rtol=0.5, scale=3.0, seed=1))
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)
    assert error(first.value, oracle(dense, rhs, squared=False, damping=0.1)) <= 0.2
    assert first.converged
    assert first.relative_residual > 1e-6  # measured with the full operator
    assert "drew 100 examples" in first.notes[0]
    assert first.steps == 1500


def test_lissa_takes_its_scale_from_the_largest_eigenvalue() -> None:
    scale, _, products = LiSSA().scale_of(System(random_operator(SPD), Shift(0.05)))
    assert 10.0 <= scale <= 12.0
    assert products == 12
    with pytest.raises(DescriptionError, match=r"LiSSA\(scale=\.\.\.\) must be positive or 'auto', got -1"):
        LiSSA(scale=-1)


@pytest.mark.parametrize("filter", [Shift(0.3), Tikhonov(0.3), Tikhonov(0.0)], ids=str)
def test_a_filter_on_eigenvalues_is_the_real_part_of_a_shifted_inverse(filter) -> None:
    h = np.array([-2.0, 0.5, 7.0])
    closed = 1 / (h + 0.3) if isinstance(filter, Shift) else h / (h**2 + filter.damping)
    np.testing.assert_allclose(filter(torch.from_numpy(h)), closed, rtol=1e-14)
    np.testing.assert_allclose((1 / (h + filter.shift)).real, closed, rtol=1e-14)


def test_sums_are_in_float64_and_cross_the_chunks() -> None:
    long = torch.full((CHUNK + 3,), 1e4)
    long[-1] = 1.0
    exact = (CHUNK + 2) * 1e8 + 1
    assert dot(long, long) == exact
    assert norm_of_sum((2.0, long), (-1.0, long)) == pytest.approx(exact**0.5, rel=1e-15)
    # float32 would lose this difference altogether
    assert norm_of_sum((1.0, torch.tensor([1.0])), (-1.0 - 1e-12, torch.tensor([1.0]))) == pytest.approx(
        1e-12, rel=1e-3, abs=0
    )
