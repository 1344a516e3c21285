"""Curvature products against dense matrices of plain PyTorch; every way of computing them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import Chain, Frozen, GaussNewton, Hessian, Proximal
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.operator import SumOperator
from stagetrace.curvature.plan import Matrix, Plan, Way
from stagetrace.errors import StagetraceError
from tests.curvature import specimens
from tests.curvature.specimens import (
    ATTENTION,
    BACKWARDS,
    CONVOLUTIONAL,
    ENCODER,
    GRID,
    GRU,
    LSTM,
    MLP,
    SPECIMENS,
    SQUARED_MLP,
    TIED,
    N,
    Specimen,
)

MATRICES: tuple[Matrix, ...] = ("Hessian", "GaussNewton")
WAYS: tuple[Way, ...] = ("linearised", "retained graph", "recomputed forward", "recomputed reverse")
CHOICES = {"Hessian": Hessian, "GaussNewton": GaussNewton}

by_matrix = pytest.mark.parametrize("matrix", MATRICES)
by_way = pytest.mark.parametrize("way", WAYS)


def named(*some: Specimen) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("specimen", some, ids=lambda specimen: specimen.name)


@lru_cache
def dense(specimen: Specimen, matrix: Matrix) -> Tensor:
    """Each example's matrix, `[n, size, size]`, without the library."""
    if matrix == "Hessian":
        return specimens.dense_hessians(specimen)
    return specimens.dense_gauss_newtons(specimen)


def operator(
    specimen: Specimen,
    matrix: Matrix,
    way: Way,
    chunk: int = N,
    indices: Sequence[int] = range(N),
    dtype: torch.dtype = torch.float64,
    missing: str | None = None,
    **changes: Any,
) -> MeanCurvature:
    return MeanCurvature(specimen.risk(dtype, **changes), indices, Plan(matrix, way, chunk, 1, 0, missing))


def vectors(size: int, columns: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, columns, dtype=dtype, generator=torch.Generator().manual_seed(6))


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relatively to the largest entry."""
    assert found.shape == expected.shape
    gap = float((found.double() - expected.double()).abs().max())
    assert gap <= tolerance * float(expected.abs().max()), gap


# Against dense matrices


@named(*SPECIMENS)
@by_matrix
@pytest.mark.parametrize("way", WAYS[1:])
def test_products_equal_a_dense_matrix(specimen: Specimen, matrix: Matrix, way: Way):
    expected = dense(specimen, matrix).mean(dim=0)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, specimens.SINGLE)):
        found = operator(specimen, matrix, way, chunk=4, dtype=dtype)
        v = vectors(found.size, 2, dtype)
        products = found @ v
        assert products.dtype == dtype
        assert_close(products, expected @ v.double(), tolerance)
        assert_close(found @ v[:, 0], (expected @ v.double())[:, 0], tolerance)  # and once more, with what is kept


@named(MLP, SQUARED_MLP, CONVOLUTIONAL, TIED)
@by_matrix
def test_a_traced_product_equals_a_dense_matrix_every_time(specimen: Specimen, matrix: Matrix):
    expected = dense(specimen, matrix).mean(dim=0)
    found = operator(specimen, matrix, "linearised")
    v = vectors(found.size, 3)
    for _ in range(2):
        assert_close(found @ v, expected @ v, 1e-10)


@pytest.mark.parametrize(
    ("specimen", "matrix"),
    [
        pytest.param(LSTM, "Hessian", marks=pytest.mark.slow),
        pytest.param(GRU, "GaussNewton", marks=pytest.mark.slow),
        pytest.param(ATTENTION, "Hessian", marks=pytest.mark.slow),
        (ENCODER, "GaussNewton"),
    ],
)
def test_a_trace_through_layers_that_work_in_place_is_right_or_refused(specimen: Specimen, matrix: Matrix):
    # PyTorch 2.13 traces them wrongly, some of them only from the second product on.
    expected = dense(specimen, matrix).mean(dim=0)
    found = operator(specimen, matrix, "linearised")
    v = vectors(found.size, 3)
    refusal = None
    try:
        products = [found @ v for _ in range(2)]
    except RuntimeError as error:
        refusal, products = str(error), []
    assert refusal is None or "works in place" in refusal
    for product in products:
        assert_close(product, expected @ v, 1e-10)


@by_matrix
def test_the_whole_matrix_is_symmetric_and_dense(matrix: Matrix):
    found = CHOICES[matrix]().operator(MLP.bound()).to_dense(columns=5)
    assert_close(found, dense(MLP, matrix).mean(dim=0), 1e-10)
    assert_close(found, found.mT, 1e-10)
    if matrix == "GaussNewton":
        assert float(torch.linalg.eigvalsh(found)[0]) > -1e-12


# What must not matter


@by_matrix
@by_way
def test_chunks_do_not_matter(matrix: Matrix, way: Way):
    v = vectors(31, 2)
    expected = dense(MLP, matrix).mean(dim=0) @ v
    for chunk in (5,) if way == "linearised" else (2, 5, 1000):  # 7 = 2 + 2 + 2 + 1 = 5 + 2
        assert_close(operator(MLP, matrix, way, chunk) @ v, expected, 1e-12)


@by_matrix
@by_way
def test_several_vectors_equal_one_by_one(matrix: Matrix, way: Way):
    found = operator(TIED, matrix, way, chunk=4)
    v = vectors(found.size, 3)
    one_by_one = torch.stack([found @ column for column in v.unbind(dim=1)], dim=1)
    torch.testing.assert_close(found @ v, one_by_one, rtol=1e-13, atol=1e-15)


def test_the_model_s_mode_does_not_matter():
    evaluating = CONVOLUTIONAL.bound()
    evaluating.stage.model.eval()
    training = CONVOLUTIONAL.bound()
    assert training.stage.model.training
    v = vectors(evaluating.trained.size, 1)
    torch.testing.assert_close(Hessian().operator(training) @ v, Hessian().operator(evaluating) @ v, rtol=0, atol=0)
    assert int(dict(training.stage.model.named_buffers())["norm.num_batches_tracked"]) == 0


# Which examples


@pytest.mark.parametrize("choice", [Hessian, GaussNewton])
def test_a_subset_is_seeded_and_averages_over_its_examples(choice: Any):
    bound, random = MLP.bound(), torch.get_rng_state()
    chosen = choice(examples=4, seed=1)
    indices = list(chosen.indices(bound))
    assert indices == list(choice(examples=4, seed=1).indices(bound)) == sorted(set(indices))
    assert len(indices) == 4
    assert any(list(choice(examples=4, seed=seed).indices(bound)) != indices for seed in (2, 3))
    assert list(choice(examples=100).indices(bound)) == list(choice().indices(bound)) == list(range(N))
    expected = dense(MLP, choice.__name__)[indices].mean(dim=0)
    assert_close(chosen.operator(bound).to_dense(), expected, 1e-10)
    assert torch.equal(torch.get_rng_state(), random)


@by_matrix
def test_a_subsample_is_a_mean_over_examples_drawn_without_replacement(matrix: Matrix):
    found, v = operator(MLP, matrix, "retained graph", indices=[5, 0, 3, 6]), vectors(31, 2)
    each = dense(MLP, matrix) @ v
    all_four = found.subsample(4, torch.Generator().manual_seed(1))
    assert_close(all_four @ v, each[[5, 0, 3, 6]].mean(dim=0), 1e-12)
    seen = set()
    for seed in range(12):
        one, again = (found.subsample(1, torch.Generator().manual_seed(seed)) @ v for _ in range(2))
        torch.testing.assert_close(one, again, rtol=0, atol=0)
        nearest = int((each - one).flatten(1).norm(dim=1).argmin())
        assert_close(one, each[nearest], 1e-12)
        seen.add(nearest)
    assert seen == {5, 0, 3, 6}
    for seed in range(6):  # any two of the four, in whatever order they were drawn
        pair = found.subsample(2, torch.Generator().manual_seed(seed)) @ v
        pairs = [each[[i, j]].mean(dim=0) for i in (5, 0, 3, 6) for j in (5, 0, 3, 6) if i < j]
        assert min(float((pair - candidate).abs().max()) for candidate in pairs) < 1e-12


def test_a_subsample_keeps_nothing_and_the_penalties_whole():
    bound = MLP.bound(weight_decay=0.5)
    total = Hessian().operator(bound)
    part = total.subsample(3, torch.Generator().manual_seed(2))
    assert isinstance(part, SumOperator)
    assert isinstance(part.left, MeanCurvature)
    assert not part.left.plan.caches
    v = vectors(31, 1)
    torch.testing.assert_close(part @ v - part.left @ v, 0.5 * v)


# Penalties


@pytest.mark.parametrize("choice", [Hessian(), GaussNewton()], ids=repr)
def test_penalties_are_on_the_diagonal(choice: Any):
    previous, stage = MLP.stage(name="before"), MLP.stage(name="after", weight_decay=0.3, link=Proximal("0", alpha=0.2))
    pulled = choice.operator(Chain(previous, stage).last).to_dense()
    plain = choice.operator(MLP.bound()).to_dense()
    expected = torch.tensor([0.3 + 2 * 0.2] * 16 + [0.3] * 15, dtype=torch.float64)  # the first layer has 16
    torch.testing.assert_close(pulled - plain, torch.diag(expected), rtol=1e-12, atol=1e-12)


def test_a_kept_layer_is_no_part_of_the_curvature():
    previous, stage = MLP.stage(name="before"), MLP.stage(name="after", link=Frozen("0"))
    found = Hessian().operator(Chain(previous, stage).last).to_dense()
    assert_close(found, dense(MLP, "Hessian").mean(dim=0)[16:, 16:], 1e-10)


# Degenerate losses


class Unused(nn.Module):
    """Half of the parameters are never looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


UNUSED = Specimen("unused", Unused, (3,))


@by_matrix
@by_way
def test_parameters_that_the_loss_does_not_depend_on_have_zero_rows(matrix: Matrix, way: Way):
    found = operator(UNUSED, matrix, way).to_dense()
    assert not found[8:].any()
    assert not found[:, 8:].any()
    assert_close(found[:8, :8], dense(UNUSED, matrix).mean(dim=0)[:8, :8], 1e-12)


class Slope:
    """A loss that is linear in the outputs."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return outputs.sum(dim=1) * batch[0].sum(dim=1)


LINEAR = Specimen("linear", lambda: nn.Linear(3, 2), (3,))


@by_matrix
@by_way
def test_a_loss_linear_in_the_parameters_has_no_curvature(matrix: Matrix, way: Way):
    found = operator(LINEAR, matrix, way, objective=Slope())
    assert not (found @ vectors(8, 2)).any()


@by_way
def test_a_plain_loss_linear_in_the_parameters_has_no_curvature(way: Way):
    def losses(model: nn.Module, batch: Any) -> Tensor:
        return (batch[0] @ model.weight.T).sum(dim=1)

    found = operator(LINEAR, "Hessian", way, objective=losses)
    assert not (found @ vectors(8, 2)).any()


@by_way
def test_a_loss_without_the_parameters_has_no_curvature(way: Way):
    def losses(model: nn.Module, batch: Any) -> Tensor:
        return batch[0].square().sum(dim=1)

    for matrix in MATRICES:
        found = operator(LINEAR, matrix, way, objective=losses)
        assert not (found @ vectors(8, 2)).any()


# Models without forward mode


@named(BACKWARDS, GRID)
@by_matrix
@pytest.mark.parametrize("way", ["retained graph", "recomputed reverse"])
def test_without_forward_mode_products_are_the_same(specimen: Specimen, matrix: Matrix, way: Way):
    if not specimens.differentiates_twice(specimen):
        pytest.skip("this PyTorch has no second derivative for it")
    found = operator(specimen, matrix, way, chunk=3, missing="an operation")
    v = vectors(found.size, 2)
    if specimen is BACKWARDS:
        plain = Specimen("plain", lambda: specimens.Through(lambda x: x), specimen.inputs)
        expected = dense(plain, matrix).mean(dim=0)
    else:  # only its reverse mode is there: the derivative of gradients, one row at a time
        if matrix == "GaussNewton":
            expected = specimens.dense_gauss_newtons(specimen).mean(dim=0)
        else:
            _, losses, at = specimens.functions_of(specimen)
            expected = torch.as_tensor(torch.autograd.functional.hessian(lambda p: losses(p).mean(), at))
    assert_close(found @ v, expected @ v, 1e-10)


def test_an_operator_refuses_vectors_of_another_length():
    found = operator(LINEAR, "Hessian", "retained graph")
    for shape in ((7,), (7, 2), (8, 1, 1), ()):
        with pytest.raises(StagetraceError, match=r"multiplies vectors of shape \[8\] or \[8, k\], got"):
            _ = found @ torch.zeros(shape, dtype=torch.float64)
