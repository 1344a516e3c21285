"""phi_t against dense eigendecompositions, against descent that is really run, and at both of its ends."""

import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from stagetrace.curvature.operator import DenseOperator, DiagonalOperator, LinearOperator
from stagetrace.errors import DescriptionError, SolveError
from stagetrace.solvers import CG, Direct, EarlyStopping, Equation, Lanczos, LiSSA, Normal, Shift, Solver, Status, solve
from tests.solvers.cases import SHORT, SPECTRA, Counting, Spectrum, error, float64, random_operator, random_rhs

SPD, ILL, INDEFINITE, *_ = SPECTRA
TIMES = [1e-3, 1.0, 10.0, 1e3]
PAIRS = [(spectrum, time) for spectrum in SPECTRA for time in TIMES if spectrum.definite or time <= 10]
every_pair = pytest.mark.parametrize(("spectrum", "time"), PAIRS, ids=[f"{s}-{t:g}" for s, t in PAIRS])
metrics = pytest.mark.parametrize("metric", [None, "random"], ids=["plain", "metric"])


def random_metric(size: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).uniform(0.1, 10, size))


def dense(
    operator: LinearOperator, time: float, metric: Tensor | None, decay: "float | Tensor" = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`phi_t` and `exp(-t .)` of the scaled operator, by its eigenvectors, and `D^-1/2`."""
    H = float64(operator.to_dense())
    root = np.ones(len(H)) if metric is None else 1 / np.sqrt(float64(metric))
    A = root[:, None] * H * root + np.diag(np.broadcast_to(np.asarray(decay), len(H)))
    values, vectors = np.linalg.eigh(A)
    gain = np.array([time if abs(time * h) < 1e-12 else -np.expm1(-time * h) / h for h in values])
    return (vectors * gain) @ vectors.T, (vectors * np.exp(-time * values)) @ vectors.T, root


@metrics
@every_pair
def test_is_the_function_of_the_dense_matrix(spectrum: Spectrum, time: float, metric: str | None) -> None:
    """To the bound of its residual: phi_t of the smallest eigenvalue times what is left."""
    operator = random_operator(spectrum)
    rhs = random_rhs(operator, 3)
    D = None if metric is None else random_metric(operator.size)
    solution = solve(operator, rhs, EarlyStopping(time, D, rtol=spectrum.rtol))
    phi, _, root = dense(operator, time, D)
    assert solution.converged, solution
    start = root[:, None] * float64(rhs)
    gap = float64(solution.value) / root[:, None] - phi @ start
    bound = np.linalg.eigvalsh(phi).max() * spectrum.rtol * np.linalg.norm(start, axis=0)
    assert (np.linalg.norm(gap, axis=0) <= 1.01 * bound).all()
    words = f"phi_t(H) b, t = {time:g}" if D is None else f"D^-1/2 phi_t(D^-1/2 H D^-1/2) D^-1/2 b, t = {time:g}"
    assert str(solution.system) == f"x = {words}"


@metrics
@pytest.mark.parametrize("memory", [2**31, SHORT], ids=["kept", "short"])
@pytest.mark.parametrize("spectrum", [SPD, ILL, INDEFINITE], ids=str)
def test_the_residual_is_that_of_the_differential_equation(spectrum: Spectrum, metric: str | None, memory: int) -> None:
    """`c - A z - dz/dt`, with the derivative by differences of the same run stopped a little earlier and later."""
    operator = random_operator(spectrum)
    rhs = random_rhs(operator)
    D = None if metric is None else random_metric(operator.size)
    root = np.ones(operator.size) if D is None else 1 / np.sqrt(float64(D))

    def stopped(time: float) -> tuple[np.ndarray, float]:
        solution = solve(operator, rhs, EarlyStopping(time, D, rtol=1e-14, max_steps=4, memory=memory))
        assert solution.status is Status.MAX_STEPS
        return float64(solution.value) / root, solution.relative_residual

    time, step, start = 1.5, 1e-4, root * float64(rhs)
    slope = (stopped(time + step)[0] - stopped(time - step)[0]) / (2 * step)
    answer, measured = stopped(time)
    left = start - root * (float64(operator.to_dense()) @ (root * answer)) - slope
    assert measured == pytest.approx(np.linalg.norm(left) / np.linalg.norm(start), rel=1e-5)


@metrics
def test_long_training_is_the_inverse_and_short_training_the_gradient(metric: str | None) -> None:
    operator = random_operator(ILL)
    rhs = random_rhs(operator)
    D = None if metric is None else random_metric(operator.size)
    long, short = (solve(operator, rhs, EarlyStopping(time, D, rtol=1e-12)) for time in (1e12, 1e-9))
    assert error(long.value, np.linalg.solve(float64(operator.to_dense()), float64(rhs))) <= 1e-5
    assert error(short.value, 1e-9 * float64(rhs if D is None else rhs / D)) <= 1e-7


@pytest.mark.parametrize("decay", [0.0, 0.3, "entries"], ids=["no-decay", "decay", "entries"])
@metrics
def test_is_where_descent_is_after_its_steps(metric: str | None, decay: "float | str") -> None:
    """Half a unit more and less of a gradient: what T really run steps make of it, and their limit of small rates."""
    operator = random_operator(SPD)
    b, size = float64(random_rhs(operator)), operator.size
    D = None if metric is None else random_metric(size)
    shrinks = random_metric(size) / 30 if decay == "entries" else decay
    assert not isinstance(shrinks, str)
    H, time = float64(operator.to_dense()), 0.7

    def run(weight: float, steps: int) -> np.ndarray:
        theta, rate = np.zeros(size), time / steps
        for _ in range(steps):
            moved = (H @ theta + (weight - 1) * b) / (1.0 if D is None else float64(D))
            theta = theta - rate * moved - rate * np.asarray(shrinks) * theta
        return theta

    def slope(steps: int) -> np.ndarray:
        return (run(1.5, steps) - run(0.5, steps)) / (1.5 - 0.5)

    solution = solve(operator, torch.from_numpy(b), EarlyStopping(time, D, shrinks, rtol=1e-12))
    coarse, fine = slope(400), slope(800)
    first, second = (error(-solution.value, each) for each in (coarse, fine))
    assert second <= 0.01
    assert second == pytest.approx(first / 2, rel=0.02)  # the error of Euler's steps is of the order of the rate
    assert error(-solution.value, 2 * fine - coarse) <= 3e-5


def test_adam_s_steps_with_a_second_moment_at_rest() -> None:
    """torch's own Adam, its moments held where they are: `D = sqrt(v / (1 - beta2^step)) + eps`."""
    operator = random_operator(SPD)
    b, H = random_rhs(operator), operator.matrix
    v, eps, step, rate, steps = random_metric(operator.size) ** 2, 1e-2, 1000, 1e-4, 2000
    D = (v / (1 - 0.999999**step)).sqrt() + eps

    def run(weight: float) -> Tensor:
        theta = torch.zeros_like(b, requires_grad=True)
        optimizer = torch.optim.Adam([theta], lr=rate, betas=(0.0, 0.999999), eps=eps)
        for _ in range(steps):
            moments = {"exp_avg": torch.zeros_like(b), "exp_avg_sq": (v / 0.999999).clone()}
            optimizer.state[theta] = {"step": torch.tensor(float(step - 1)), **moments}
            theta.grad = H @ theta.detach() + weight * b
            optimizer.step()
        return theta.detach()

    slope = (run(1e-3) - run(-1e-3)) / 2e-3
    solution = solve(operator, b, EarlyStopping(rate * steps, D, rtol=1e-10))
    assert error(-solution.value, float64(slope)) <= 2e-3


def test_entries_that_never_moved_stay() -> None:
    operator = random_operator(SPD)
    rhs, D = random_rhs(operator), random_metric(operator.size)
    D[::3] = float("inf")
    solution = solve(operator, rhs, EarlyStopping(0.5, D, rtol=1e-10))
    assert not solution.value[::3].any()
    moving = torch.ones(operator.size, dtype=torch.bool)
    moving[::3] = False
    rest = DenseOperator(operator.matrix[moving][:, moving])
    alone = solve(rest, rhs[moving], EarlyStopping(0.5, D[moving], rtol=1e-10))
    assert error(solution.value[moving], float64(alone.value)) <= 1e-9


@metrics
def test_with_little_memory_each_vector_is_made_twice(metric: str | None) -> None:
    operator = Counting(random_operator(ILL))
    rhs = random_rhs(operator, 3)
    D = None if metric is None else random_metric(operator.size)
    kept = solve(operator, rhs, EarlyStopping(3.0, D, rtol=1e-8))
    before = operator.columns
    short = solve(operator, rhs, EarlyStopping(3.0, D, rtol=1e-8, memory=SHORT))
    assert short.products + short.checks == operator.columns - before
    assert short.steps == kept.steps
    assert (short.products, short.checks) == (2 * kept.products - 3, 3)
    assert error(short.value, float64(kept.value)) <= 1e-7
    cut = [solve(operator, rhs, EarlyStopping(3.0, D, max_steps=5, memory=memory)) for memory in (2**31, SHORT)]
    assert error(cut[1].value, float64(cut[0].value)) <= 1e-12


@pytest.mark.parametrize("memory", [40 * 480, SHORT], ids=["kept", "short"])
def test_columns_that_do_not_fit_together_are_reported_one_after_the_other(memory: int) -> None:
    operator, said = Counting(random_operator(SPD)), list[int]()
    rhs = random_rhs(operator, 5)
    early = EarlyStopping(3.0, max_steps=20, memory=memory)
    solution = solve(operator, rhs, early, lambda step, residual: said.append(step))
    assert said == list(range(1, len(said) + 1))
    assert len(said) == operator.calls > 20
    assert error(solution.value, float64(solve(operator, rhs, EarlyStopping(3.0, max_steps=20)).value)) <= 1e-12


def test_of_an_operator_with_a_stand_in_that_is_taken() -> None:
    class Hessian(Counting):
        @property
        def psd_approximation(self) -> LinearOperator:
            return DiagonalOperator(torch.full((60,), 2.0, dtype=torch.float64))

    operator = Hessian(random_operator(INDEFINITE))
    rhs = random_rhs(operator)
    solution = solve(operator, rhs, EarlyStopping(1e3))
    assert operator.columns == 0
    assert error(solution.value, float64(rhs / 2)) <= 1e-6
    assert str(solution.system) == "x = phi_t(G) b, t = 1000"
    assert "Gauss-Newton" in solution.notes[0]


def test_the_notes_say_how_far_training_got_and_warn_of_growth() -> None:
    rhs = torch.ones(2, dtype=torch.float64)
    one = solve(DiagonalOperator(torch.tensor([0.5, 4.0]).double()), rhs, EarlyStopping(10.0))
    assert one.notes == ("t times the curvature goes from 5 to 40: above 1 the stage had arrived, below it had not",)
    grown = solve(DiagonalOperator(torch.tensor([-0.5, 4.0]).double()), rhs, EarlyStopping(10.0))
    assert re.search(r"grows by exp\(5\).*GaussNewton\(\)", grown.notes[-1])
    with pytest.raises(SolveError, match=r"eigenvalue of -5\.00e-01.*exp\(500\).*GaussNewton\(\)"):
        solve(DiagonalOperator(torch.tensor([-0.5, 4.0]).double()), rhs, EarlyStopping(1e3))


def test_one_that_is_cut_off_says_so() -> None:
    solution = solve(random_operator(ILL), random_rhs(random_operator(ILL)), EarlyStopping(1e3, max_steps=3))
    assert (solution.status, solution.steps, solution.products, solution.checks) == (Status.MAX_STEPS, 3, 3, 1)
    assert solution.relative_residual > 1e-3


@pytest.mark.parametrize("metric", [None, torch.ones(60).double()], ids=["plain", "metric"])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_its_equation_is_written_and_read(metric: Tensor | None, decay: float) -> None:
    solution = solve(random_operator(SPD), random_rhs(random_operator(SPD)), EarlyStopping(0.25, metric, decay))
    record = json.loads(json.dumps(solution.system.record()))
    assert Equation.of(record) == solution.system
    assert ("decay" in str(solution.system)) == bool(decay)
    for broken in ({"time": "long"}, {"filter": "Shift"}, {"matrix": "I"}, {"time": -1.0}):
        with pytest.raises((ValueError, DescriptionError)):
            Equation.of(record | broken)


@pytest.mark.parametrize(
    "other", [Lanczos(0.1), Lanczos(0.1, filter=Shift), CG(), Direct(), LiSSA(), Normal(CG(), 0.1)], ids=str
)
def test_no_solver_of_a_linear_system_takes_it(other: Solver) -> None:
    operator, early = random_operator(SPD), EarlyStopping(2.0)
    with pytest.raises(DescriptionError, match=r"phi_t\(H\) b, t = 2 is no linear system; EarlyStopping\(time=2\)"):
        other.prepare(early.rule(operator)).solve(random_rhs(operator))
    with pytest.raises(DescriptionError, match=r"EarlyStopping applies .*phi_t\(H\) b, t = 2, got "):
        early.prepare(other.rule(operator))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"time": 0.0}, r"time=...\) must be finite and above 0, got 0.0"),
        ({"time": float("inf")}, r"got inf; it is the sum of the learning rates"),
        (
            {"metric": torch.tensor([1.0, 0.0])},
            r"metric=...\) must be a vector \[dim\] of numbers above 0.*one that is 0",
        ),
        ({"metric": torch.tensor([1.0, float("nan")])}, r"metric=.*one that is nan"),
        ({"metric": torch.ones(2, 2)}, r"metric=.*got torch.float32 \[2, 2\]"),
        ({"metric": torch.ones(2).long()}, r"metric=.*got torch.int64 \[2\]"),
        ({"decay": -0.1}, r"decay=...\) must be finite and not negative, got -0.1"),
        ({"decay": torch.tensor([-0.5])}, r"decay=...\) must be a vector .* of at least 0.*one that is -0.5"),
        ({"rtol": 1.0}, r"rtol=...\) must lie between 0 and 1"),
        ({"max_steps": 0}, r"max_steps=...\) must be a whole number above 0"),
        ({"memory": 0}, r"memory=...\) must be a whole number above 0"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(DescriptionError, match=words):
        EarlyStopping(**({"time": 1.0} | wrong))  # type: ignore[arg-type]


def test_a_metric_of_another_length_is_refused() -> None:
    with pytest.raises(DescriptionError, match=r"metric=...\) has 7 entries, but the operator 60"):
        solve(random_operator(SPD), random_rhs(random_operator(SPD)), EarlyStopping(1.0, torch.ones(7)))


def test_is_one_line_and_has_no_damping() -> None:
    solver = EarlyStopping(0.03, torch.ones(16_920))
    assert str(solver) == "EarlyStopping(time=0.03, metric=[16920], rtol=0.001)"
    assert "tensor" not in repr(solver)
    assert solver.rule.scaled(10.0) == solver.rule
