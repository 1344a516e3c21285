"""CG, Normal(CG) and Lanczos: what each promises beyond solving."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagetrace.curvature.operator import DenseOperator, DiagonalOperator
from stagetrace.errors import DescriptionError, SolveError
from stagetrace.solvers import CG, Direct, Equation, Lanczos, Normal, Shift, Status, Tikhonov, solve
from stagetrace.solvers.batched import run_batched
from stagetrace.solvers.conjugate_gradients import CGSettings, conjugate_gradients
from stagetrace.solvers.iteration import Iteration, Matvec, silent
from stagetrace.solvers.krylov import Krylov
from stagetrace.solvers.recurrence import Tridiagonal
from stagetrace.solvers.shifted_qr import ShiftedQR
from tests.solvers.cases import (
    SPECTRA,
    Counting,
    Spectrum,
    apart,
    error,
    float64,
    oracle,
    random_operator,
    random_rhs,
    system,
)

SPD, ILL, INDEFINITE, LOW_RANK, FLOAT32 = SPECTRA


def lanczos(rtol: float = 1e-8, **settings: object) -> Lanczos:
    return Lanczos(**({"damping": 0.05, "rtol": rtol} | settings))  # type: ignore[arg-type]


def test_cg_takes_the_steps_of_scipys() -> None:
    operator = random_operator(ILL)
    rhs = random_rhs(operator)
    steps: list[int] = []
    matrix = float64(operator.matrix) + 0.05 * np.eye(60)
    truth, _ = scipy.sparse.linalg.cg(matrix, float64(rhs), rtol=1e-6, callback=lambda _: steps.append(1))
    solution = solve(operator, rhs, CG(0.05, rtol=1e-6))
    assert abs(solution.steps - len(steps)) <= 1
    assert error(solution.value, truth) <= 2 * 1e-6 * np.linalg.cond(matrix)


def test_lanczos_with_a_real_shift_takes_the_steps_of_scipys_minres() -> None:
    operator = random_operator(INDEFINITE)
    rhs = random_rhs(operator)
    residuals: list[float] = []
    matrix, b = float64(operator.matrix) + 0.05 * np.eye(60), float64(rhs)

    def watch(x: np.ndarray) -> None:
        residuals.append(float(np.linalg.norm(b - matrix @ x) / np.linalg.norm(b)))

    scipy.sparse.linalg.minres(matrix, b, rtol=1e-12, maxiter=500, callback=watch)
    short = solve(operator, rhs, lanczos(1e-7, filter=Shift, memory=1000))
    theirs = next(step for step, residual in enumerate(residuals, 1) if residual <= 1e-7)
    assert short.converged
    assert abs(short.steps - theirs) <= 0.05 * theirs


def test_cg_says_that_the_curvature_is_indefinite_and_what_to_do() -> None:
    operator = random_operator(INDEFINITE)
    rhs = random_rhs(operator)
    solution = solve(operator, rhs, CG(damping=0.0))
    assert solution.status is Status.INDEFINITE
    assert solution.relative_residual <= 1.0
    [note] = solution.notes
    assert "Normal(CG(), damping=...)" in note
    assert "GaussNewton()" in note
    # The note's bound on the smallest eigenvalue (-1 here) holds, and damping beyond that eigenvalue does the job.
    assert -1.0 <= float(note.split("at most ")[1].split(":")[0]) < 0
    assert solve(operator, rhs, CG(damping=1.1)).converged


def test_cg_returns_its_best_iterate() -> None:
    """The first step (length 20, curvature 0.1) makes the residual 19 times worse: zero is better."""
    operator = DiagonalOperator(torch.tensor([1.0, -0.9], dtype=torch.float64))
    solution = solve(operator, torch.tensor([1.0, 1.0], dtype=torch.float64), CG())
    assert solution.status is Status.INDEFINITE
    assert solution.relative_residual == 1.0
    assert not solution.value.any()


def test_cg_keeps_the_better_answer_when_going_on_made_it_worse() -> None:
    """The iteration is driven by hand: its second descent claims success, and the product then says otherwise."""
    iteration = conjugate_gradients(torch.tensor([1.0]), CGSettings(1e-3, 1000))
    asked = [next(iteration)]
    for product in (1.0, 0.5, 0.5):  # a step, a check (true residual 0.5), a step
        asked.append(iteration.send(torch.tensor([product])))
    with pytest.raises(StopIteration) as end:
        iteration.send(torch.tensor([3.0]))  # a check: true residual 2
    assert [ask.check for ask in asked] == [False, True, False, True]
    assert (end.value.value.value.item(), end.value.value.residual) == (1.0, 0.5)
    assert end.value.value.status is Status.STAGNATED


def test_a_process_may_ask_for_a_block_beside_others_that_ask_for_vectors() -> None:
    """Each gets its own products in the shape it asked in; columns are counted, those that measure apart."""

    def asking(vectors: torch.Tensor, check: bool) -> Iteration[Krylov]:
        product = yield Matvec(vectors, 1.0, check)
        torch.testing.assert_close(product, operator.inner @ vectors)
        assert product.shape == vectors.shape
        assert product.is_contiguous()
        yield Matvec(vectors[:, 0] if vectors.ndim == 2 else vectors, 0.5, check)
        return Krylov((), 0.0, 2)

    operator = Counting(random_operator(SPD))
    run = run_batched(operator, [asking(random_rhs(operator, 3), True), asking(random_rhs(operator), False)], silent)
    assert (run.products, run.checks) == (2, 4)
    with pytest.raises(SolveError, match=r"not finite in column 1"):
        run_batched(operator, [asking(torch.tensor([[0.0, float("nan")]] * 60).double(), True)], silent)


def test_cg_says_when_the_right_hand_side_is_outside_the_range() -> None:
    operator = DiagonalOperator(torch.tensor([1.0, 3.0, 1e-300], dtype=torch.float64))
    solution = solve(operator, torch.ones(3, dtype=torch.float64), CG())
    assert solution.status is Status.SINGULAR
    assert solution.relative_residual <= 1.0
    assert "add damping" in solution.notes[0]


def test_cg_stops_at_the_step_limit_with_its_true_residual() -> None:
    operator = random_operator(ILL)
    solution = solve(operator, random_rhs(operator), CG(max_steps=5))
    assert (solution.status, solution.steps, solution.products) == (Status.MAX_STEPS, 5, 5)


def test_cg_goes_on_from_the_measured_residual_in_float32() -> None:
    """The recurrence alone drifts from the truth; replaced residuals bring it below what one descent reaches."""
    spectrum = Spectrum("drifting", np.logspace(-3, 0, 100), dtype=torch.float32)
    operator = random_operator(spectrum)
    solution = solve(operator, random_rhs(operator), CG(rtol=3e-5, max_steps=5000))
    assert solution.checks > 1
    assert solution.converged


def test_what_float32_cannot_reach_is_stagnation_and_never_convergence() -> None:
    operator = random_operator(Spectrum("steep", np.logspace(-3, 1, 80), dtype=torch.float32))
    rhs = random_rhs(operator)
    for solver in (CG(rtol=1e-9), Normal(CG(rtol=1e-9, max_steps=3000), 1e-3), Lanczos(1e-3, rtol=1e-9)):
        solution = solve(operator, rhs, solver)
        # whether the conjugate gradients' recurrence ever claims to be done depends on how it is rounded
        assert solution.status in {Status.STAGNATED, *([] if isinstance(solver, Lanczos) else [Status.MAX_STEPS])}
        assert 1e-9 < solution.relative_residual < 0.1
    assert "rounding floor of torch.float32" in solution.notes[0]


@pytest.mark.parametrize("spectrum", [SPD, ILL, INDEFINITE, FLOAT32], ids=str)
def test_lanczos_takes_at_most_half_the_products_of_normal_cg_at_equal_error(spectrum: Spectrum) -> None:
    operator = random_operator(spectrum)
    rhs = random_rhs(operator)
    truth = oracle(operator, rhs, squared=True)

    def products(solver_at) -> int:
        """The fewest products, over step limits, whose answer is within 1e-3 of the truth."""
        for steps in range(1, 400):
            solution = solve(operator, rhs, solver_at(steps))
            if error(solution.value, truth) <= 1e-3:
                return solution.products
        raise AssertionError("never reached")

    ours = products(lambda steps: lanczos(1e-12, max_steps=steps))
    papers = products(lambda steps: Normal(CG(rtol=1e-12, max_steps=steps), 0.05))
    assert 2 * ours <= papers, (ours, papers)


@pytest.mark.parametrize("filter", [Tikhonov, Shift])
@pytest.mark.parametrize("memory", [2**30, 12_000], ids=["kept", "short"])
def test_a_sweep_equals_separate_runs_and_spends_the_products_of_the_hardest(filter, memory: int) -> None:
    dampings = (1e-3, 1e-1, 0.03)
    operator = Counting(random_operator(INDEFINITE))
    rhs = random_rhs(operator)
    solver = lanczos(filter=filter, memory=memory)
    together = solver.sweep(operator, rhs, dampings)
    spent = operator.columns - sum(solution.checks for solution in together)
    alone = [solve(operator, rhs, lanczos(filter=filter, memory=memory, damping=damping)) for damping in dampings]
    for one, other, damping in zip(together, alone, dampings, strict=True):
        assert torch.equal(one.value, other.value)
        assert one.relative_residuals == other.relative_residuals
        assert (one.system, one.status) == (Equation(filter(damping)), Status.CONVERGED)
        assert one.products == spent == max(solution.products for solution in alone)


@pytest.mark.parametrize("filter", [Tikhonov, Shift])
@pytest.mark.parametrize("damping", [0.0, 0.05])
@pytest.mark.parametrize("spectrum", [SPD, INDEFINITE, LOW_RANK, FLOAT32], ids=str)
def test_the_short_recurrence_equals_the_kept_basis(spectrum: Spectrum, damping: float, filter) -> None:
    operator = random_operator(spectrum)
    rhs = operator @ random_rhs(operator, 3)  # in the range, so that damping 0 has an answer
    kept = solve(operator, rhs, lanczos(spectrum.rtol, filter=filter, damping=damping))
    short = solve(operator, rhs, lanczos(spectrum.rtol, filter=filter, damping=damping, memory=1000))
    assert kept.converged
    assert short.converged
    assert short.steps >= kept.steps
    matrix, _ = system(operator, rhs, squared=filter is Tikhonov, damping=damping)
    assert error(short.value, float64(kept.value)) <= apart(matrix, short, kept)


def test_the_short_recurrence_may_take_more_steps_than_dimensions() -> None:
    operator = random_operator(Spectrum("hard", np.concatenate([-np.logspace(-4, 0, 20), np.logspace(-4, 2, 40)])))
    solution = solve(operator, random_rhs(operator), lanczos(1e-6, damping=1e-5, memory=1000, max_steps=2000))
    assert solution.converged
    assert solution.steps > operator.size


def test_memory_decides_between_one_group_several_groups_and_the_short_recurrence() -> None:
    operator = Counting(random_operator(SPD))
    rhs = random_rhs(operator, 4)
    one_column = 8 * 60 * 62  # bytes of 60 + 2 vectors in float64
    calls, solutions = [], []
    for memory in (4 * one_column, 2 * one_column, 2 * one_column - 1):
        operator.calls = 0
        solutions.append(solve(operator, rhs, lanczos(memory=memory)))
        calls.append(operator.calls)
    assert calls[0] < calls[1] < calls[2]
    matrix, _ = system(operator.inner, rhs, squared=True)
    for one in solutions[1:]:
        assert error(one.value, float64(solutions[0].value)) <= apart(matrix, solutions[0], one)


def test_an_exhausted_krylov_space_ends_the_run_with_the_exact_answer() -> None:
    operator = random_operator(LOW_RANK)
    solution = solve(operator, random_rhs(operator), lanczos(1e-14, memory=2**30))
    assert solution.products == 3  # eigenvalues 0, 1 and 5
    assert error(solution.value, oracle(operator, random_rhs(operator), squared=True)) <= 1e-11
    assert solution.spectrum is not None
    np.testing.assert_allclose(solution.spectrum.ritz, [0, 1, 5], atol=1e-12)


def test_a_run_that_used_up_its_space_says_that_it_had_nothing_left_to_reach() -> None:
    """In exact arithmetic the answer is exact; what the measurement finds is rounding, and the note says both."""
    operator = random_operator(LOW_RANK)
    solution = solve(operator, random_rhs(operator), lanczos(1e-30))
    assert (solution.status, solution.products) == (Status.STAGNATED, 3)
    assert solution.notes[0].startswith("the recurrence reached 0.0e+00 but the measured residual is")
    assert 0 < solution.relative_residual < 1e-12


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), steps=st.integers(1, 8))
def test_the_projected_operator_has_the_eigenvalues_and_the_size_of_its_matrix(seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    alphas, betas = rng.standard_normal(steps), rng.uniform(0, 2, steps)
    found = Tridiagonal()
    for alpha, beta in zip(alphas, betas, strict=True):
        found.extend(float(alpha), float(beta))
    # one row for each step: what H does to a basis vector, the next one's part included
    rows = np.diag(np.append(alphas, 0.0)) + np.diag(betas, 1) + np.diag(betas, -1)
    np.testing.assert_allclose(found.ritz(), np.linalg.eigvalsh(rows[:steps, :steps]), atol=1e-13)
    assert found.norm == pytest.approx(np.linalg.norm(rows[:steps], np.inf), rel=1e-14)


def test_cg_calls_no_curvature_at_all_indefinite() -> None:
    """`p' H p` is exactly zero in the first step: no length of a step along p is a minimum."""
    operator = DiagonalOperator(torch.tensor([1.0, -1.0], dtype=torch.float64))
    solution = solve(operator, torch.ones(2, dtype=torch.float64), CG())
    assert (solution.status, solution.products) == (Status.INDEFINITE, 1)
    assert "met curvature 0 along" in solution.notes[0]
    assert not solution.value.any()


def test_cg_goes_on_however_small_the_curvature_is() -> None:
    """Between zero and any curvature above it lies a world: only the sign counts, not the size."""
    tiny = DiagonalOperator(torch.tensor([1e-12, 3e-12], dtype=torch.float64))
    solution = solve(tiny, torch.ones(2, dtype=torch.float64), CG(rtol=1e-10))
    assert (solution.status, solution.steps) == (Status.CONVERGED, 2)
    torch.testing.assert_close(solution.value, torch.tensor([1e12, 1e12 / 3], dtype=torch.float64), rtol=1e-9, atol=0)


def test_an_exhausted_krylov_space_is_noticed_in_float32_too() -> None:
    operator = random_operator(Spectrum("low-rank32", LOW_RANK.eigenvalues, dtype=torch.float32))
    solution = solve(operator, random_rhs(operator), lanczos(1e-7))
    assert solution.products == 3
    matrix, _ = system(operator, random_rhs(operator), squared=True)
    rounding = 10 * torch.finfo(torch.float32).eps * np.linalg.cond(matrix)
    assert error(solution.value, oracle(operator, random_rhs(operator), squared=True)) <= rounding


def test_lanczos_without_damping_says_that_the_operator_is_singular() -> None:
    operator = random_operator(LOW_RANK)
    solution = solve(operator, random_rhs(operator), lanczos(damping=0.0))
    assert solution.status is Status.SINGULAR
    assert "add damping" in solution.notes[0]
    assert torch.isfinite(solution.value).all()


def test_a_right_hand_side_in_the_null_space_is_solved_by_zero() -> None:
    operator = DiagonalOperator(torch.tensor([0.0, 1.0], dtype=torch.float64))
    solution = solve(operator, torch.tensor([2.0, 0.0], dtype=torch.float64), lanczos())
    assert solution.converged
    assert not solution.value.any()


def test_lanczos_stops_at_the_step_limit_with_its_true_residual() -> None:
    operator = random_operator(INDEFINITE)
    solution = solve(operator, random_rhs(operator), lanczos(max_steps=7))
    assert (solution.status, solution.products) == (Status.MAX_STEPS, 7)
    with pytest.raises(Exception, match=r"stopped at the step limit at relative residual .* after 7 products"):
        solution.checked()


def test_the_spectrum_lies_within_the_true_one_and_finds_its_ends() -> None:
    operator = random_operator(INDEFINITE)
    spectrum = solve(operator, random_rhs(operator, 2), lanczos()).spectrum
    assert spectrum is not None
    assert list(spectrum.ritz) == sorted(spectrum.ritz)
    assert -1.0 - 1e-9 <= spectrum.smallest <= -0.99
    assert 9.99 <= spectrum.largest <= 10 + 1e-9


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), steps=st.integers(1, 12), damping=st.floats(1e-6, 10.0))
def test_the_projected_problem_is_the_tikhonov_one_and_its_residual_exact(
    seed: int, steps: int, damping: float
) -> None:
    """Against dense NumPy: `min |T_ y - |b| e1|^2 + lambda |y|^2`, and its residual in a space one larger."""
    rng = np.random.default_rng(seed)
    alphas, betas = rng.standard_normal(steps + 1), rng.uniform(0.1, 2, steps + 1)
    system = ShiftedQR(1j * damping**0.5, 3.0)
    for alpha, beta in zip(alphas[:steps], betas[:steps], strict=True):
        system.push(float(alpha), float(beta))
    T = np.diag(np.append(alphas, 0.0)) + np.diag(betas, 1) + np.diag(betas, -1)
    T_, target = T[: steps + 1, :steps], 3.0 * np.eye(steps + 1)[0]
    y = np.linalg.solve(T_.T @ T_ + damping * np.eye(steps), T_.T @ target)
    np.testing.assert_allclose(system.coordinates(), y, rtol=1e-8, atol=1e-9)
    residual = T[:, : steps + 1] @ (target - T_ @ y) - damping * np.append(y, [0.0, 0.0])
    assert abs(system.tikhonov_residual(float(alphas[steps]), float(betas[steps])) - np.linalg.norm(residual)) <= 1e-7


@pytest.mark.parametrize("inner", [CG(damping=0.1), Direct(damping=0.1), Lanczos()], ids=str)
def test_normal_refuses_an_inner_damping_and_says_what_to_type(inner) -> None:
    with pytest.raises(DescriptionError, match=rf"Normal\({type(inner).__name__}\(damping=0.0\), damping=0.3\)"):
        Normal(inner, damping=0.3)


def test_normal_without_damping_names_the_squared_system() -> None:
    operator = random_operator(SPD)
    solution = solve(operator, random_rhs(operator), Normal(CG(), damping=0.0))
    assert str(solution.system) == "H^2 x = H b"
    assert error(solution.value, oracle(operator, random_rhs(operator), squared=False, damping=0.0)) <= 1e-4


@pytest.mark.parametrize(
    ("solver", "text"),
    [
        (Lanczos(0.01), "Lanczos(damping=0.01, rtol=auto)"),
        (Lanczos(0.01, filter=Shift, max_steps=9), "Lanczos(damping=0.01, rtol=auto, max_steps=9, filter=Shift)"),
        (Normal(CG(), 0.01), "Normal(CG(damping=0.0, rtol=1e-05), damping=0.01)"),
        (Direct(), "Direct(damping=0.0)"),
    ],
)
def test_a_solver_shows_itself_in_one_line(solver, text: str) -> None:
    assert str(solver) == text


@pytest.mark.parametrize("make", [Lanczos, CG, Direct, lambda damping: Normal(CG(), damping), Shift, Tikhonov])
@pytest.mark.parametrize("damping", [-0.1, float("nan"), float("inf")])
def test_a_damping_out_of_range_is_refused(make, damping: float) -> None:
    with pytest.raises(DescriptionError, match=r"\(damping=\.\.\.\) must be finite and not negative, got"):
        make(damping)


def test_other_settings_out_of_range_are_refused() -> None:
    with pytest.raises(DescriptionError, match=r"CG\(rtol=\.\.\.\) must lie between 0 and 1, got 1"):
        CG(rtol=1)
    with pytest.raises(DescriptionError, match=r"Lanczos\(max_steps=\.\.\.\) must be a whole number above 0, got 0"):
        Lanczos(max_steps=0)
    with pytest.raises(DescriptionError, match=r"at least one damping, got none"):
        lanczos().sweep(DenseOperator(torch.eye(2)), torch.ones(2), [])
