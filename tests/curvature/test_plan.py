"""Which way a stage's products are computed: within the memory given, for reasons that are said."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stagetrace import GaussNewton, Hessian
from stagetrace.curvature import plan as planning
from stagetrace.curvature import probe
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.plan import Matrix, Plan, Way, make_plan
from stagetrace.curvature.probe import BY_REVERSE, RETAINED
from stagetrace.errors import DataError, DescriptionError, DifferentiationError
from tests.curvature import specimens
from tests.curvature.specimens import (
    ATTENTION,
    BACKWARDS,
    BAG,
    CONVOLUTIONAL,
    ENCODER,
    GRID,
    LSTM,
    MLP,
    ONCE,
    TIED,
    N,
    Specimen,
)
from tests.curvature.test_products import CHOICES, MATRICES, WAYS, by_matrix, named

PLENTY = 2**31

KEPT: dict[Matrix, Way] = {"Hessian": "retained graph", "GaussNewton": "retained reverse graph"}
"""What is kept of a network of matrix products, where there is room."""


def planned(specimen: Specimen, matrix: Matrix = "Hessian", memory: int = PLENTY, **changes: Any) -> Plan:
    return make_plan(specimen.risk(**changes), matrix, range(N), N, memory)


@by_matrix
def test_a_small_problem_keeps_its_graph_and_says_from_when_on_tracing_pays(matrix: Matrix):
    found = planned(MLP, matrix)
    assert (found.way, found.caches, found.missing) == (KEPT[matrix], True, None)
    assert found.chunk_examples == N
    assert found.traced_from is not None
    assert found.traced_from > 1e4  # importing the tracer alone is a million gradients of this
    traced = found.traced().cached_bytes
    assert planned(MLP, matrix, traced).traced_from == found.traced_from
    assert planned(MLP, matrix, traced - 1).traced_from is None


@by_matrix
def test_tracing_pays_the_sooner_the_more_a_product_costs(matrix: Matrix):
    found = [planning._traced_from(matrix, gradient, 20) for gradient in (10**8, 10**10, 10**12, 10**15)]
    assert found == sorted(found, reverse=True)
    # however long a product takes, tracing takes as many gradients as this many products save
    assert found[-1] == {"Hessian": 32 + 1, "GaussNewton": 14 + 1}[matrix]


@by_matrix
def test_products_are_traced_from_the_number_on_at_which_that_pays(matrix: Matrix):
    found = MeanCurvature(MLP.risk(), range(N), replace(planned(MLP, matrix), traced_from=4))
    v = torch.randn(31, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = [found @ v[:, 0] for _ in range(3)]
    assert found.plan.way == KEPT[matrix]
    both = found @ v  # the fourth and the fifth
    assert (found.plan.way, found.plan.untraced, found.cost().way) == ("linearised", None, "linearised")
    for product in (*products, found @ v[:, 0]):
        torch.testing.assert_close(product, both[:, 0], rtol=1e-12, atol=1e-15)


def test_many_columns_at_once_are_traced_at_once(monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []

    def noted(way: Any) -> Any:
        return lambda risk, batch: made.append(way.__name__) or way(risk, batch)

    for ways in (planning.RETAINED, planning.LINEARISED):
        monkeypatch.setitem(ways, "GaussNewton", noted(ways["GaussNewton"]))
    plan = Plan("GaussNewton", "retained graph", N, 1, 1, None, traced_from=31)
    found = MeanCurvature(MLP.risk(), range(N), plan)
    found.to_dense()
    assert made == ["gauss_newton_linearised"]


@by_matrix
def test_a_trace_that_would_be_wrong_is_not_used(matrix: Matrix, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: Any) -> Any:
        raise RuntimeError("the traced derivative is wrong")

    monkeypatch.setitem(planning.LINEARISED, matrix, refused)
    found = MeanCurvature(MLP.risk(), range(N), replace(planned(MLP, matrix), traced_from=2))
    v = torch.randn(31, dtype=torch.float64)
    first, second = found @ v, found @ v
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    cost = found.cost()
    assert (cost.way, cost.no_forward_mode, cost.not_traced) == (
        KEPT[matrix],
        None,
        "the traced derivative is wrong",
    )


@by_matrix
@named(MLP, BACKWARDS)
def test_the_memory_decides_what_is_kept(specimen: Specimen, matrix: Matrix):
    best = planned(specimen, matrix)
    least = best.bytes_per_example * N
    forward = specimen is MLP and matrix == "GaussNewton"
    # the smaller graph is kept where the larger one does not fit
    ways = {"retained graph", "retained reverse graph", "recomputed forward"}
    if not forward:
        ways = {"retained graph", "recomputed reverse"}
    seen = set()
    for memory in (1, least // 3, least, 2 * least, best.cached_bytes - 1, best.cached_bytes, 10 * best.cached_bytes):
        found = planned(specimen, matrix, memory)
        assert found.caches == found.way.endswith(("graph", "linearised")) == (found.cached_bytes > 0)
        assert found.cached_bytes <= memory
        assert (found.way == best.way) or memory < best.cached_bytes
        assert 1 <= found.chunk_examples <= N
        assert found.chunk_examples * found.bytes_per_example <= max(memory, found.bytes_per_example)
        seen.add(found.way)
    assert seen == ways
    assert not planned(specimen, matrix, 1).caches


def test_what_a_graph_holds_is_counted_alike_every_time():
    """Among tensors that come and go: the place of one that was let go may be another's."""
    generator, others = random.Random(0), list[Tensor]()
    found = set[int]()
    for _ in range(100):
        others = [*others[-20:], *(torch.zeros(generator.randrange(1, 400)) for _ in range(3))]
        found.add(planned(MLP, "GaussNewton").cached_bytes)
    assert len(found) == 1


@named(MLP, TIED, ATTENTION, CONVOLUTIONAL)
def test_gauss_newton_goes_the_way_of_fewer_operations(specimen: Specimen):
    """Convolutions take more of them in reverse mode, matrix products fewer; both ways give one matrix."""
    risk, batch = specimen.risk(), next(iter(specimen.risk().read([range(N)])))
    v = torch.randn(risk.trained.size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    operations, products = list[int](), list[Tensor]()
    for way in (RETAINED["GaussNewton"], BY_REVERSE["GaussNewton"]):
        product = way(risk, batch)
        with FlopCounterMode(display=False) as counter:
            products.append(product(v))
        operations.append(counter.get_total_flops())
    torch.testing.assert_close(*products, rtol=1e-11, atol=1e-13)
    fewer = operations[1] <= 0.9 * operations[0]
    assert planned(specimen, "GaussNewton").way == ("retained reverse graph" if fewer else "retained graph")
    assert fewer == (specimen is not CONVOLUTIONAL)


@pytest.mark.parametrize("wrong", ["forward_tangent", "TangentGraph"])
def test_modes_that_give_different_tangents_are_looked_at_by_themselves(wrong: str, monkeypatch: pytest.MonkeyPatch):
    right = getattr(probe, wrong)

    def doubled(*arguments: Any) -> Any:
        made = right(*arguments)
        return 2 * made if isinstance(made, Tensor) else lambda vector: 2 * made(vector)

    monkeypatch.setattr(probe, wrong, doubled)
    assert planned(MLP, "GaussNewton").way == "retained graph"


@pytest.mark.parametrize("choice", [Hessian, GaussNewton])
@named(MLP, ENCODER)
def test_a_tiny_budget_gives_the_same_products(specimen: Specimen, choice: Any):
    bound = specimen.bound()
    tight, wide = (choice(memory=memory).operator(bound) for memory in (1, PLENTY))
    assert isinstance(tight.left, MeanCurvature)
    assert not tight.left.plan.caches
    assert tight.left.plan.chunk_examples == 1
    assert wide.left.plan.caches
    v = torch.randn(bound.trained.size, 2, dtype=torch.float64)
    torch.testing.assert_close(tight @ v, wide @ v, rtol=1e-10, atol=1e-13)


def test_the_same_problem_is_planned_the_same_way_again():
    assert planned(CONVOLUTIONAL) == planned(CONVOLUTIONAL)


def test_bytes_grow_with_the_example_and_not_with_their_number():
    long = Specimen("long", LSTM.make, (12, 3))
    assert planned(long).bytes_per_example > 2 * planned(LSTM).bytes_per_example
    risk = MLP.risk()
    few, many = (make_plan(risk, "Hessian", range(n), n, PLENTY) for n in (3, 7))
    assert abs(few.bytes_per_example - many.bytes_per_example) < 0.2 * many.bytes_per_example
    assert few.cached_bytes < many.cached_bytes


def test_one_example_is_enough_for_a_plan():
    found = make_plan(MLP.risk(), "Hessian", [3], 1, PLENTY)
    assert (found.chunk_examples, found.caches) == (1, True)


def test_what_is_multiplied_once_is_not_kept():
    ways: dict[str | None, str] = {None: "recomputed forward", "an operation": "recomputed reverse"}
    for missing, way in ways.items():
        plan = Plan("GaussNewton", "retained graph", 5, 100, 700, missing, traced_from=9).without_caching()
        assert (plan.way, plan.caches, plan.cached_bytes, plan.chunk_examples) == (way, False, 0, 5)
        assert plan.traced_from is None
    assert Plan("Hessian", "retained graph", 5, 100, 700, None).without_caching().way == "recomputed reverse"


@by_matrix
def test_kept_ways_are_expected_to_be_cheaper(matrix: Matrix):
    cost = {way: Plan(matrix, way, 1, 1, 0, None).gradients_per_product for way in WAYS}
    assert cost["linearised"] < cost["retained graph"] < min(cost["recomputed forward"], cost["recomputed reverse"])
    without = {way: Plan(matrix, way, 1, 1, 0, "an operation").gradients_per_product for way in WAYS[1:]}
    assert all(without[way] >= cost[way] for way in without)


# Operations without derivatives


@named(BACKWARDS, GRID)
@by_matrix
def test_without_forward_mode_the_graph_is_used_and_the_cause_named(specimen: Specimen, matrix: Matrix):
    if not specimens.differentiates_twice(specimen):
        pytest.skip("this PyTorch has no second derivative for it")
    for memory, way in ((PLENTY, "retained graph"), (1, "recomputed reverse")):
        found = planned(specimen, matrix, memory)
        assert found.way == way
        if matrix == "GaussNewton":
            assert ("jvp" if specimen is BACKWARDS else "grid_sampler_2d") in str(found.missing)
            assert found.traced_from is None


@pytest.mark.parametrize(
    ("specimen", "names"), [(BAG, "_embedding_bag"), (ONCE, "once_differentiable")], ids=lambda value: str(value)[:12]
)
@pytest.mark.parametrize("memory", [PLENTY, 1])
@by_matrix
def test_without_a_second_derivative_there_is_one_clear_error(
    specimen: Specimen, names: str, memory: int, matrix: Matrix
):
    with pytest.raises(DifferentiationError) as caught:
        CHOICES[matrix](memory=memory).operator(specimen.bound())
    message = str(caught.value)
    assert names in message
    assert f"stage 'only': the {matrix} needs second derivatives" in message
    assert "replace that operation, or use curvature=Identity() for this stage" in message
    assert "\n" not in message


def test_a_loss_of_the_wrong_shape_is_not_taken_for_a_missing_derivative():
    def losses(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).sum()

    with pytest.raises(DataError, match="the loss was reduced to one number for 1 examples"):
        planned(MLP, objective=losses)


def test_gauss_newton_needs_outputs():
    def losses(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).square().sum(dim=1)

    with pytest.raises(DescriptionError, match=r"GaussNewton needs the model's outputs.*or use Hessian"):
        GaussNewton().operator(MLP.bound(objective=losses))


@pytest.mark.parametrize("choice", [Hessian, GaussNewton])
@pytest.mark.parametrize(
    "settings", [{"examples": 0}, {"examples": 2.0}, {"examples": True}, {"memory": 0}, {"seed": "one"}], ids=repr
)
def test_settings_that_make_no_sense_are_refused(choice: Any, settings: dict[str, Any]):
    with pytest.raises(DescriptionError, match=rf"{choice.__name__}\({next(iter(settings))}=\.\.\.\)"):
        choice(**settings)


def test_both_matrices_are_covered():
    assert set(MATRICES) == set(planning.RETAINED) == set(planning.LINEARISED) == set(planning.BY_REVERSE)
