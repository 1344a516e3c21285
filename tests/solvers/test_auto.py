"""`damping="auto"`: a damping from the ends of the spectrum, the same for every right-hand side."""

import pytest
import torch

from stagetrace import CG, Lanczos
from stagetrace.curvature.operator import DenseOperator, DiagonalOperator
from stagetrace.errors import DescriptionError
from stagetrace.solvers import Shift
from stagetrace.solvers.auto import choose_damping, ends_of_spectrum


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
