"""`damping="auto"`: a damping from the ends of the spectrum, the same for every right-hand side."""

import pytest
import torch

from stagetrace import CG, Lanczos
from stagetrace.curvature.operator import DenseOperator, DiagonalOperator
from stagetrace.errors import DescriptionError
from stagetrace.solvers import Shift
from stagetrace.solvers.auto import FEWEST_STEPS, PROBE_STEPS, choose_damping, ends_of_spectrum, settled


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
    assert choose_damping(operator(spread(smallest, 4.0))).damping == pytest.approx(smallest**2, rel=1e-6)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 2.0**-52), (torch.float32, 2.0**-23)])
def test_a_strict_minimum_is_inverted_plainly_up_to_rounding(dtype, eps):
    chosen = choose_damping(operator(spread(0.01, 4.0), dtype))
    assert chosen.damping == pytest.approx(eps * 4.0**2, rel=1e-3)


def test_the_solution_is_that_of_the_chosen_damping():
    H, b = operator(spread(-0.3, 4.0)), torch.arange(40.0, dtype=torch.float64)
    found = Lanczos(rtol=1e-12).prepare(H).solve(b)
    dense = H.to_dense()
    expected = torch.linalg.solve(dense @ dense + 0.09 * torch.eye(40, dtype=torch.float64), dense @ b)
    torch.testing.assert_close(found.value, expected, rtol=1e-6, atol=1e-8)
    assert found.converged
    assert found.notes[0].startswith("damping='auto' chose 0.09 (eigenvalues from -3.00e-01 to 4.00e+00")


def test_the_damping_is_the_operators_own_and_chosen_once():
    H = operator(spread(-0.3, 4.0))
    inverse = Lanczos().prepare(H)
    few = inverse.solve(torch.eye(40, dtype=torch.float64)[:, 0])
    many = inverse.solve(torch.eye(40, dtype=torch.float64)[:, 3:5])
    assert few.system == many.system == "(H^2 + 0.09 I) x = H b"
    assert choose_damping(H).products == 40


def test_products_of_the_probe_are_counted():
    H, b = operator(spread(-0.3, 4.0)), torch.arange(40.0, dtype=torch.float64)
    chosen = choose_damping(H)
    typed = Lanczos(damping=chosen.damping).prepare(H).solve(b)
    assert Lanczos().prepare(H).solve(b).products == typed.products + chosen.products


def test_ends_of_the_spectrum_are_those_of_the_matrix():
    spectrum, products = ends_of_spectrum(operator(spread(-0.3, 4.0)))
    assert spectrum.smallest == pytest.approx(-0.3, rel=1e-8)
    assert spectrum.largest == pytest.approx(4.0, rel=1e-8)
    assert products <= 40


def test_one_negative_eigenvalue_among_thousands_is_found_wherever_it_hides():
    """However little of its eigenvector the random start happens to hold."""
    ones = torch.ones(20_000, dtype=torch.float64)
    for place in range(0, len(ones), 400):
        values = ones.clone()
        values[place] = -0.5
        assert choose_damping(DiagonalOperator(values)).damping == pytest.approx(0.25, rel=1e-6), place


def test_auto_needs_the_damped_square():
    with pytest.raises(DescriptionError, match="filter=Shift"):
        Lanczos(filter=Shift)
    with pytest.raises(DescriptionError, match="damping"):
        CG(damping="auto")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DescriptionError, match="damping"):
        Lanczos(damping="automatic")  # pyright: ignore[reportArgumentType]


# When the ends have settled

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
    """The cut is that of all 60 products, to 2 %; and as near to the true one as these come, to 2 % again."""
    H = DiagonalOperator(eigenvalues)
    early = choose_damping(H)
    monkeypatch.setattr("stagetrace.solvers.auto.settled", lambda seen, dtype: False)
    late = choose_damping(H)
    assert late.products == PROBE_STEPS
    assert early.cut == pytest.approx(late.cut, rel=0.02)
    true = max(-float(eigenvalues.min()), 0.0)
    if true > 2.0**-26 * float(eigenvalues.max()):
        assert abs(early.cut - true) <= abs(late.cut - true) + 0.02 * true
    assert early.indefinite == late.indefinite


def test_an_isolated_end_takes_a_fraction_of_the_products():
    assert FEWEST_STEPS <= choose_damping(DiagonalOperator(NASTY["one negative eigenvalue, and a bulk"])).products <= 25


def test_an_end_that_still_moves_takes_all_of_them():
    assert choose_damping(DiagonalOperator(NASTY["a faint negative end"])).products == PROBE_STEPS


def test_an_operator_that_can_be_exhausted_is():
    H = operator([-0.3, -0.2999, *torch.linspace(0.01, 4.0, PROBE_STEPS - 2).tolist()])
    found = choose_damping(H)
    assert found.products == PROBE_STEPS
    assert found.spectrum.smallest == pytest.approx(-0.3, rel=1e-9)


def test_the_search_is_reported_without_a_residual():
    H, b = operator(spread(-0.3, 4.0)), torch.arange(40.0, dtype=torch.float64)
    said: list[tuple[int, float]] = []
    found = Lanczos().prepare(H).solve(b, lambda step, residual: said.append((step, residual)))
    steps = [step for step, _ in said]
    assert steps == list(range(1, len(steps) + 1))
    assert [residual for _, residual in said[:40]] == pytest.approx([float("nan")] * 40, nan_ok=True)
    assert len(said) == found.products
    assert said[-1][1] < 1e-3


STEADY = [((-0.5, 0.001), (4.0, 0.001))] * 20
UNSETTLED = {
    "few steps": STEADY[: FEWEST_STEPS - 1],
    "the smallest's residual": [*STEADY[:-1], ((-0.5, 0.1), (4.0, 0.001))],
    "the largest's residual": [*STEADY[:-1], ((-0.5, 0.001), (4.0, 0.5))],
    "the smallest moved": [((-0.5 - 0.002 * step, 0.001), (4.0, 0.001)) for step in range(20)],
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
