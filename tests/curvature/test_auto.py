"""The default curvature against dense matrices: the Hessian at a minimum, Gauss-Newton plus its worst end elsewhere."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stagetrace import Chain, Hessian, Lanczos, Query, Stage, trace
from stagetrace.curvature import Auto
from stagetrace.curvature.auto import HessianWithFallback
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.operator import SumOperator
from stagetrace.errors import CurvatureWarning
from stagetrace.objectives import Classification
from stagetrace.solvers import solve
from tests.curvature.specimens import MLP, SQUARED_MLP, Specimen, dense_gauss_newtons, dense_hessians

CONVEX = 5.0
"""A weight decay that makes the specimens' Hessians positive definite."""


def rhs(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def means(specimen: Specimen) -> tuple[Tensor, Tensor]:
    return dense_hessians(specimen).mean(dim=0), dense_gauss_newtons(specimen).mean(dim=0)


@pytest.mark.parametrize("specimen", [MLP, SQUARED_MLP], ids=lambda specimen: specimen.name)
def test_an_indefinite_hessian_is_replaced_by_gauss_newton_and_its_own_worst_end(specimen: Specimen) -> None:
    H, G = means(specimen)
    worst = float(torch.linalg.eigvalsh(H)[0])
    assert worst < -1e-3
    operator = Auto().operator(specimen.bound())
    b = rhs(len(H))
    found = solve(operator, b, Lanczos(rtol=1e-10))
    torch.testing.assert_close(found.value, torch.linalg.solve(G - worst * torch.eye(len(H)).double(), b))
    assert str(found.system) == f"(G + {-worst:g} I) x = b"
    assert "Gauss-Newton" in found.notes[0]
    assert found.spectrum is not None
    assert found.spectrum.smallest == pytest.approx(worst)


def test_a_positive_hessian_is_inverted_as_it_is() -> None:
    H, _ = means(MLP)
    H = H + CONVEX * torch.eye(len(H), dtype=torch.float64)
    b = rhs(len(H))
    found = solve(Auto().operator(MLP.bound(weight_decay=CONVEX)), b, Lanczos(rtol=1e-10))
    torch.testing.assert_close(found.value, torch.linalg.solve(H, b), rtol=1e-6, atol=1e-8)


def test_a_damping_that_was_given_is_of_the_hessian() -> None:
    bound, b = MLP.bound(), rhs(len(means(MLP)[0]))
    ours, hessians = (
        solve(choice.operator(bound), b, Lanczos(damping=0.3, rtol=1e-10)) for choice in (Auto(), Hessian())
    )
    torch.testing.assert_close(ours.value, hessians.value)
    assert str(ours.system) == "(H^2 + 0.3 I) x = H b"


def test_a_plain_loss_has_no_gauss_newton_and_keeps_the_damped_hessian() -> None:
    def losses(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    H, _ = means(MLP)
    worst = float(torch.linalg.eigvalsh(H)[0])
    b = rhs(len(H))
    found = solve(Auto().operator(MLP.bound(objective=losses)), b, Lanczos(rtol=1e-10))
    damped = H @ H + worst**2 * torch.eye(len(H), dtype=torch.float64)
    torch.testing.assert_close(found.value, torch.linalg.solve(damped, H @ b), rtol=1e-6, atol=1e-8)


def test_both_matrices_average_over_the_same_draw() -> None:
    few = Auto(examples=3, seed=1)
    indices = list(few.indices(MLP.bound()))
    assert len(indices) == 3
    H, G = (every[indices].mean(dim=0) for every in (dense_hessians(MLP), dense_gauss_newtons(MLP)))
    operator = few.operator(MLP.bound())
    torch.testing.assert_close(operator.to_dense(), H)
    assert operator.psd_approximation is not None
    torch.testing.assert_close(operator.psd_approximation.to_dense(), G)


class Counting:
    """The specimen's data, and how often each example was read."""

    def __init__(self) -> None:
        data = MLP.data()
        self.rows, self.reads = [data[index] for index in range(len(data))], [0] * len(data)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.reads[index] += 1
        return self.rows[index]


@pytest.mark.parametrize("memory", [2**30, 1], ids=["graphs kept", "computed anew"])
def test_examples_are_read_once_for_all_products_of_both_matrices(memory: int) -> None:
    data = Counting()
    stage = Stage("only", model=MLP.model(), objective=Classification(), data=data)
    operator = Auto(memory=memory).operator(Chain(stage)["only"])
    v = rhs(31)
    before = list(data.reads)  # the shape of the outputs and the plan are looked at with the first examples
    for _ in range(3):
        v = operator @ v
    once = [now - then for now, then in zip(data.reads, before, strict=True)]
    assert once == [1] * len(data)
    G = operator.psd_approximation
    assert G is not None
    planned = list(data.reads)
    for _ in range(3):
        v = G @ v
    assert data.reads == planned  # from the Hessian's memory


def test_the_hessian_s_graphs_are_let_go_where_gauss_newton_takes_its_place() -> None:
    operator = Auto().operator(MLP.bound())
    assert isinstance(operator, HessianWithFallback)
    assert isinstance(operator.hessian, SumOperator)
    mean = operator.hessian.left
    assert isinstance(mean, MeanCurvature)
    first = operator @ rhs(31)
    assert mean._kept is not None
    assert operator.psd_approximation is not None
    assert mean._kept is None
    torch.testing.assert_close(operator @ rhs(31), first, rtol=0, atol=0)  # made anew


def test_trace_takes_it_and_says_so() -> None:
    stage: Stage = MLP.stage(name="only")
    with pytest.warns(CurvatureWarning, match="Gauss-Newton was inverted in its place"):
        result = trace(Chain(stage), Query(MLP.data()))
    assert result.solutions["only"].system.matrix == "G"
