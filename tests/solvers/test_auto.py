"""`damping="auto"`: a damping from the extreme eigenvalues, the same for every right-hand side."""

import pytest
import torch

from stagetrace import CG, Lanczos
from stagetrace.curvature.operator import DenseOperator, DiagonalOperator, LinearOperator
from stagetrace.errors import DescriptionError
from stagetrace.solvers import Direct, Fixed, FromSpectrum, LiSSA, Normal, Shift, Solver, Spectrum, solve
from stagetrace.solvers.damping import MIN_STEPS, SPECTRUM_STEPS, settled
from stagetrace.solvers.spectrum import extreme_ritz_values
from tests.solvers.cases import prepared


def operator(eigenvalues: list[float], dtype: torch.dtype = torch.float64) -> DenseOperator:
    """A dense matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(1)
    n = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    return DenseOperator((Q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ Q.mT).to(dtype))


def spread(smallest: float, largest: float) -> list[float]:
    return [smallest, *torch.linspace(0.01, 1.0, 38).tolist(), largest]


@pytest.mark.parametrize("smallest", [-0.5, -0.05])
def test_negative_curvature_sets_the_damping(smallest):
    assert FromSpectrum()(operator(spread(smallest, 4.0))).linear.damping == pytest.approx(smallest**2, rel=1e-6)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 2.0**-52), (torch.float32, 2.0**-23)])
def test_a_strict_minimum_is_inverted_plainly_up_to_rounding(dtype, eps):
    system = FromSpectrum()(operator(spread(0.01, 4.0), dtype))
    assert system.linear.damping == pytest.approx(eps * 4.0**2, rel=1e-3)


def test_the_solution_is_that_of_the_chosen_damping():
    H, b = operator(spread(-0.3, 4.0)), torch.arange(40.0, dtype=torch.float64)
    found = solve(H, b, Lanczos(rtol=1e-12))
    dense = H.to_dense()
    expected = torch.linalg.solve(dense @ dense + 0.09 * torch.eye(40, dtype=torch.float64), dense @ b)
    torch.testing.assert_close(found.value, expected, rtol=1e-6, atol=1e-8)
    assert found.converged
    assert found.notes[0].startswith("damping='auto' chose 0.09 (eigenvalues from -3.00e-01 to 4.00e+00")


def test_the_damping_is_the_operators_own_and_chosen_once():
    H = operator(spread(-0.3, 4.0))
    inverse = prepared(Lanczos(), H)
    few = inverse.solve(torch.eye(40, dtype=torch.float64)[:, 0])
    many = inverse.solve(torch.eye(40, dtype=torch.float64)[:, 3:5])
    assert str(few.system) == str(many.system) == "(H^2 + 0.09 I) x = H b"
    assert FromSpectrum()(H).products == 40


def test_products_of_the_probe_are_counted():
    H, b = operator(spread(-0.3, 4.0)), torch.arange(40.0, dtype=torch.float64)
    system = FromSpectrum()(H)
    typed = solve(H, b, Lanczos(damping=system.linear.damping))
    inverse = prepared(Lanczos(), H)
    assert inverse.solve(b).products == typed.products + system.products
    assert inverse.solve(b).products == typed.products


def test_ends_of_the_spectrum_are_those_of_the_matrix():
    spectrum, products = extreme_ritz_values(operator(spread(-0.3, 4.0)), SPECTRUM_STEPS)
    assert spectrum.smallest == pytest.approx(-0.3, rel=1e-8)
    assert spectrum.largest == pytest.approx(4.0, rel=1e-8)
    assert products <= 40


def test_one_negative_eigenvalue_among_thousands_is_found_wherever_it_hides():
    """However little of its eigenvector the random start happens to hold."""
    ones = torch.ones(20_000, dtype=torch.float64)
    for place in range(0, len(ones), 400):
        values = ones.clone()
        values[place] = -0.5
        assert FromSpectrum()(DiagonalOperator(values)).linear.damping == pytest.approx(0.25, rel=1e-6), place


class Replaceable(LinearOperator):
    """A matrix with a positive semi-definite one at hand."""

    def __init__(self, H: DenseOperator, G: DenseOperator) -> None:
        self.H, self.G = H, G
        self.size, self.dtype, self.device = H.size, H.dtype, H.device

    def apply(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.H.apply(vectors)

    @property
    def psd_approximation(self) -> DenseOperator:
        return self.G


AUTO = [Lanczos(rtol=1e-11), Lanczos(rtol=1e-11, filter=Shift), CG("auto", 1e-11), Direct("auto")]
AUTO += [Direct("auto", Shift), LiSSA("auto", 1e-9, 100_000), Normal(CG(rtol=1e-11), "auto")]


@pytest.mark.parametrize(
    ("solver", "smallest"),
    [(solver, end) for solver in AUTO for end in (-0.3, 0.3) if end < 0 or not isinstance(solver, LiSSA)],
    ids=str,
)
def test_every_solver_takes_its_damping_from_the_spectrum(solver: Solver, smallest: float):
    """Against dense solves: G and the cut in the place of an indefinite H, but for Normal; H where it is positive."""
    H, G = operator(spread(smallest, 4.0)), operator([0.0, *spread(0.1, 4.0)[1:]])
    b, eye = torch.arange(40.0, dtype=torch.float64), torch.eye(40, dtype=torch.float64)
    found = solve(Replaceable(H, G), b, solver)
    if smallest > 0:
        cut = 4.0 * 2.0**-26  # at rounding
        expected, matrix = torch.linalg.solve(H.matrix + cut * eye * ("^2" not in str(found.system)), b), "H"
    elif isinstance(solver, Normal):
        expected, matrix = torch.linalg.solve(H.matrix @ H.matrix + 0.09 * eye, H.matrix @ b), "H"
    else:
        expected, matrix = torch.linalg.solve(G.matrix + 0.3 * eye, b), "G"
    torch.testing.assert_close(found.value, expected, rtol=1e-5, atol=1e-6)
    assert (found.system.matrix, found.converged) == (matrix, True)
    assert found.spectrum is not None
    assert found.spectrum.smallest == pytest.approx(min(smallest, 0.01), rel=1e-5)


@pytest.mark.parametrize("solver", [Lanczos(filter=Shift), CG("auto"), LiSSA("auto"), Direct("auto", Shift)], ids=str)
def test_a_shift_lifts_the_smallest_eigenvalue_to_the_cut_where_nothing_stands_in(solver: Solver):
    H = operator(spread(-0.3, 4.0))
    system = solver.rule(H)
    assert float(torch.linalg.eigvalsh(H.matrix)[0]) + system.linear.damping == pytest.approx(0.3, rel=1e-6)
    assert solve(H, torch.arange(40.0, dtype=torch.float64), solver).converged


@pytest.mark.parametrize("rule", [Fixed(0.2), Fixed(0.2, Shift), FromSpectrum(), FromSpectrum(Shift)], ids=str)
def test_a_rule_times_a_factor_damps_by_as_much_more(rule: Fixed | FromSpectrum):
    H, spectrum = operator(spread(-0.3, 4.0)), Spectrum((-0.3, 4.0))
    for make in (lambda rule: rule(H), lambda rule: rule.with_spectrum(H, spectrum)):
        assert make(rule.scaled(10.0)).filter.damping == pytest.approx(10 * make(rule).filter.damping, rel=1e-12)
    assert rule.scaled(10.0) != rule


def test_a_rule_of_ones_own_is_a_damping():
    H, b = operator(spread(0.1, 4.0)), torch.arange(40.0, dtype=torch.float64)
    own = solve(H, b, CG(damping=Fixed(0.4, Shift)))
    assert torch.equal(own.value, solve(H, b, CG(damping=0.4)).value)
    with pytest.raises(DescriptionError, match=r"CG solves \(H \+ damping I\) x = b, got \(H\^2 \+ 0.4 I\) x = H b"):
        solve(H, b, CG(damping=Fixed(0.4)))
    with pytest.raises(DescriptionError, match=r"Normal solves .*, got \(H \+ 0.4 I\) x = b; use its inner solver, CG"):
        solve(H, b, Normal(CG(), Fixed(0.4, Shift)))


@pytest.mark.parametrize("make", [Lanczos, CG, Direct, LiSSA, lambda damping: Normal(CG(), damping)])
def test_another_word_than_auto_is_refused(make):
    with pytest.raises(DescriptionError, match=r"\(damping=...\) must be a number or 'auto', got 'automatic'"):
        make(damping="automatic")


# When the extreme Ritz values have settled

MANY = 2000


def drawn(low: float, high: float, n: int = MANY) -> torch.Tensor:
    return low + (high - low) * torch.rand(n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def tail(size: float, ratio: float, n: int) -> torch.Tensor:
    return size * ratio ** torch.arange(n, dtype=torch.float64)


NASTY = {
    "one negative eigenvalue, and a bulk": torch.cat([torch.tensor([-0.3]).double(), drawn(0.0, 4.0)]),
    "two that are nearly one": torch.cat([torch.tensor([-0.3, -0.299]).double(), drawn(0.0, 4.0)]),
    "one just below the edge of a bulk": torch.cat([torch.tensor([-0.5]).double(), drawn(-0.49, 0.0), drawn(0.0, 4.0)]),
    "a long negative tail": torch.cat([-tail(0.8, 0.99, 1000), tail(30.0, 0.98, 1000)]),
    "a short negative tail in zeros": torch.cat([-tail(0.5, 0.9, 80), tail(50.0, 0.8, 80), torch.zeros(MANY)]),
    "a huge largest": torch.cat([torch.tensor([1e4, -0.5]).double(), drawn(0.0, 1.0)]),
    "a semicircle's edge": torch.cos(torch.pi * drawn(0.0, 1.0)) + 0.9,
    "both ends alike": drawn(-1.0, 1.0),
    "positive, from almost nothing": drawn(0.01, 4.0),
    "positive, with a gap": torch.cat([torch.tensor([0.01]).double(), drawn(1.0, 5.0)]),
    "no negative end at all": torch.cat([torch.zeros(MANY).double(), tail(30.0, 0.9, 200)]),
    "a faint negative end": torch.cat([torch.tensor([-0.01]).double(), drawn(0.0, 4.0)]),
}


@pytest.mark.parametrize("eigenvalues", NASTY.values(), ids=NASTY.keys())
def test_a_run_that_ends_early_is_as_reliable_as_a_long_one(eigenvalues, monkeypatch):
    """The cut is that of all 60 products, to 10 %; and as near to the true one as these come, to 10 % again."""
    H = DiagonalOperator(eigenvalues)
    early = FromSpectrum()(H)
    monkeypatch.setattr("stagetrace.solvers.damping.settled", lambda seen, dtype: False)
    late = FromSpectrum()(H)
    assert late.products == SPECTRUM_STEPS
    cuts = [abs(system.linear.shift) for system in (early, late)]
    assert cuts[0] == pytest.approx(cuts[1], rel=0.1)
    true = max(-float(eigenvalues.min()), 0.0)
    if true > 2.0**-26 * float(eigenvalues.max()):
        assert abs(cuts[0] - true) <= abs(cuts[1] - true) + 0.1 * true


def test_an_isolated_end_takes_a_fraction_of_the_products():
    assert MIN_STEPS <= FromSpectrum()(DiagonalOperator(NASTY["one negative eigenvalue, and a bulk"])).products <= 25


def test_an_end_that_still_moves_takes_all_of_them():
    assert FromSpectrum()(DiagonalOperator(NASTY["a faint negative end"])).products == SPECTRUM_STEPS


def test_an_operator_that_can_be_exhausted_is():
    H = operator([-0.3, -0.2999, *torch.linspace(0.01, 4.0, SPECTRUM_STEPS - 2).tolist()])
    found = FromSpectrum()(H)
    assert found.products == SPECTRUM_STEPS
    assert found.spectrum is not None
    assert found.spectrum.smallest == pytest.approx(-0.3, rel=1e-9)


def test_the_search_is_reported_without_a_residual():
    H, b = operator(spread(-0.3, 4.0)), torch.arange(40.0, dtype=torch.float64)
    said: list[tuple[int, float]] = []
    found = solve(H, b, Lanczos(), lambda step, residual: said.append((step, residual)))
    steps = [step for step, _ in said]
    assert steps == list(range(1, len(steps) + 1))
    assert [residual for _, residual in said[:40]] == pytest.approx([float("nan")] * 40, nan_ok=True)
    assert len(said) == found.products
    assert said[-1][1] < 1e-3


STEADY = [((-0.5, 0.001), (4.0, 0.001))] * 20
UNSETTLED = {
    "few steps": STEADY[: MIN_STEPS - 1],
    "the smallest's residual": [*STEADY[:-1], ((-0.5, 0.1), (4.0, 0.001))],
    "the largest's residual": [*STEADY[:-1], ((-0.5, 0.001), (4.0, 0.5))],
    "the smallest moved": [((-0.5 - 0.01 * step, 0.001), (4.0, 0.001)) for step in range(20)],
    "the smallest is hardly negative": [((-0.001, 0.001), (4.0, 0.001))] * 20,
}


@pytest.mark.parametrize("seen", UNSETTLED.values(), ids=UNSETTLED.keys())
def test_what_has_not_settled(seen):
    assert settled(STEADY, torch.float64)
    assert not settled(seen, torch.float64)


def test_an_end_within_rounding_decides_nothing_and_need_not_settle():
    seen = [((-1e-5, 1e-5), (4.0, 0.001))] * 20
    assert settled(seen, torch.float32)
    assert not settled(seen, torch.float64)
