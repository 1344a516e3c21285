"""Every solver on every operator it is meant for, against dense SciPy in float64; then the laws."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagetrace.errors import SolveError, StagetraceError
from stagetrace.solvers import Status, solve
from tests.solvers.cases import (
    SOLVERS,
    SPECTRA,
    STOPPED,
    Case,
    Counting,
    Spectrum,
    apart,
    error,
    float64,
    oracle,
    prepared,
    random_operator,
    random_rhs,
    system,
)

PAIRS = [(case, spectrum) for case, spectrum in product(SOLVERS, SPECTRA) if case.suits(spectrum)]
every_pair = pytest.mark.parametrize(("case", "spectrum"), PAIRS, ids=[f"{c}-{s}" for c, s in PAIRS])
every_solver = pytest.mark.parametrize("case", SOLVERS + STOPPED, ids=str)
SPD = SPECTRA[0]


@every_pair
def test_solves_the_system_it_names(case: Case, spectrum: Spectrum) -> None:
    operator = random_operator(spectrum)
    rhs = random_rhs(operator, 3)
    solution = solve(operator, rhs, case.make(spectrum.rtol))
    matrix, _ = system(operator, rhs, case.squared)
    assert solution.converged, solution
    assert error(solution.value, oracle(operator, rhs, case.squared)) <= 2 * spectrum.rtol * np.linalg.cond(matrix)
    assert str(solution.system) == ("(H^2 + 0.05 I) x = H b" if case.squared else "(H + 0.05 I) x = b")


@every_pair
def test_the_residual_is_the_true_one(case: Case, spectrum: Spectrum) -> None:
    operator = random_operator(spectrum)
    rhs = random_rhs(operator, 2)
    solution = solve(operator, rhs, case.make(spectrum.rtol))
    matrix, target = system(operator, rhs, case.squared)
    truth = np.linalg.norm(target - matrix @ float64(solution.value), axis=0) / np.linalg.norm(target, axis=0)
    rounding = 50 * torch.finfo(operator.dtype).eps * np.linalg.cond(matrix)
    np.testing.assert_allclose(solution.relative_residuals, truth, rtol=1e-2, atol=rounding)
    assert solution.relative_residual <= solution.tolerance


@every_pair
def test_products_and_checks_count_every_column_multiplied(case: Case, spectrum: Spectrum) -> None:
    operator = Counting(random_operator(spectrum))
    inverse = prepared(case.make(spectrum.rtol), operator)
    rhs = random_rhs(operator, 3)
    solutions = [inverse.solve(rhs), inverse.solve(rhs[:, 0])]
    assert sum(s.products + s.checks for s in solutions) == operator.columns


@every_solver
def test_columns_share_their_products(case: Case) -> None:
    """Two equal columns take as many batched products as one."""
    one, two = Counting(random_operator(SPD)), Counting(random_operator(SPD))
    rhs = random_rhs(one)
    solve(one, rhs, case.make(1e-6))
    solve(two, torch.stack([rhs] * 2, dim=1), case.make(1e-6))
    assert abs(two.calls - one.calls) <= 1


@every_pair
def test_columns_together_equal_each_alone(case: Case, spectrum: Spectrum) -> None:
    operator = random_operator(spectrum)
    inverse = prepared(case.make(spectrum.rtol), operator)
    rhs = random_rhs(operator, 3)
    matrix, _ = system(operator, rhs, case.squared)
    together = inverse.solve(rhs)
    for j in range(3):
        alone = inverse.solve(rhs[:, j])
        assert error(together.value[:, j], float64(alone.value)) <= apart(matrix, together, alone)


@every_solver
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**16), a=st.floats(-8, 8), c=st.floats(0.25, 8))
def test_linear_in_the_right_hand_side(case: Case, seed: int, a: float, c: float) -> None:
    operator = random_operator(SPD, seed)
    inverse = prepared(case.make(1e-9), operator)
    left, right = random_rhs(operator, seed=seed), random_rhs(operator, seed=seed + 1)
    combined = inverse.solve(a * left + c * right).value
    parts = a * inverse.solve(left).value + c * inverse.solve(right).value
    size = abs(a) * left.norm() + c * right.norm()
    # each of the three misses its answer by rtol * |A^-1| |b|, and |A^-1| |H| <= 10 / (1 + DAMPING)
    assert float((combined - parts).norm() / size) <= 2 * 1e-9 * 10


@every_solver
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_repeats_bitwise_and_mutates_nothing(case: Case, seed: int) -> None:
    operator = random_operator(SPD, seed)
    rhs = random_rhs(operator, 2, seed=seed)
    matrix_before, rhs_before = operator.matrix.clone(), rhs.clone()
    first, second = (solve(operator, rhs, case.make(1e-6)) for _ in range(2))
    assert torch.equal(first.value, second.value)
    assert (first.relative_residuals, first.spectrum) == (second.relative_residuals, second.spectrum)
    assert torch.equal(operator.matrix, matrix_before)
    assert torch.equal(rhs, rhs_before)


@every_solver
def test_a_zero_column_costs_nothing_and_is_solved_by_zero(case: Case) -> None:
    operator = Counting(random_operator(SPD))
    inverse = prepared(case.make(1e-6), operator)
    rhs = random_rhs(operator, 3)
    rhs[:, 1] = 0
    solution = inverse.solve(rhs)
    assert not solution.value[:, 1].any()
    assert (solution.relative_residuals[1], solution.statuses[1]) == (0.0, Status.CONVERGED)
    before = operator.columns
    nothing = inverse.solve(torch.zeros(operator.size, dtype=torch.float64))
    assert operator.columns == before
    assert (nothing.products, nothing.checks, nothing.converged) == (0, 0, True)
    assert nothing.value.shape == (operator.size,)
    assert inverse.solve(rhs[:, :0]).value.shape == (operator.size, 0)


@every_solver
def test_reports_every_step(case: Case) -> None:
    operator = random_operator(SPD)
    said: list[tuple[int, float]] = []
    solution = solve(operator, random_rhs(operator, 2), case.make(1e-6), lambda *words: said.append(words))
    assert [step for step, _ in said] == list(range(1, len(said) + 1))
    assert len(said) >= solution.steps
    assert said[-1][1] <= 1e-6


@every_solver
def test_what_is_not_finite_is_named(case: Case) -> None:
    operator = random_operator(SPD)
    rhs = random_rhs(operator, 2)
    rhs[3, 1] = float("nan")
    with pytest.raises(SolveError, match=r"right-hand side is not finite in column 1"):
        solve(operator, rhs, case.make(1e-6))
    operator.matrix[0, 0] = float("inf")
    if case.name != "lissa-scaled":  # LiSSA itself calls this divergence
        with pytest.raises(SolveError, match=r"Operator .*is not finite"):
            solve(operator, random_rhs(operator, 2), case.make(1e-6))


@every_solver
@pytest.mark.parametrize("wrong", [torch.ones(7), torch.ones(60, 2, 2), torch.ones(60)], ids=["short", "3d", "float32"])
def test_a_right_hand_side_that_does_not_fit_is_refused(case: Case, wrong: torch.Tensor) -> None:
    with pytest.raises(StagetraceError, match=r"\[60\] or \[60, k\]|pass rhs.to\(torch.float64\)"):
        solve(random_operator(SPD), wrong, case.make(1e-6))
