"""What must hold of scores whatever the truth is: linearity, invariances, what each argument may and may not change."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from stagetrace import (
    CG,
    Chain,
    Direct,
    Frozen,
    GaussNewton,
    Hessian,
    Identity,
    Lanczos,
    Normal,
    Proximal,
    Query,
    Trace,
    trace,
)
from stagetrace.objectives import Classification
from tests import oracles
from tests.chains import (
    FROZEN_LOGISTIC,
    FROZEN_RIDGE,
    RIDGES,
    STRONG_LOGISTIC,
    STRONG_RIDGE,
    STRONG_TANH,
    THREE_FROZEN,
    ChainCase,
    chain_of,
    query_of,
)
from tests.oracles import solved

EXACT: dict[str, Any] = {"curvature": Hessian(), "solver": Direct()}


def named(cases: tuple[ChainCase, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def traced(
    case: ChainCase, query: Query | None = None, stages: Mapping[str, Any] | None = None, **settings: Any
) -> Trace:
    """The trace of a solved case; `stages` are changed arguments of `Stage` by the stage's name."""
    return trace(chain_of(case, solved(case), **(stages or {})), query or query_of(case), **(EXACT | settings))


@lru_cache
def baseline(case: ChainCase) -> Trace:
    """The trace without changes, made once."""
    return traced(case)


def assert_same_scores(one: Trace, other: Trace, tolerance: float = 1e-10) -> None:
    """Every stage's scores agree, relatively to the stage's largest."""
    assert list(one) == list(other)
    for name in one:
        scale = float(other[name].values.abs().max())
        torch.testing.assert_close(one[name].values, other[name].values, rtol=0, atol=tolerance * scale)


def query_gradient(case: ChainCase) -> dict[str, Tensor]:
    """The gradient of the mean query loss by the last stage's parameters."""
    return {name: gradient.mean(dim=0) for name, gradient in oracles.query_gradients(case).items()}


def own_part(case: ChainCase, by_name: dict[str, Tensor]) -> Tensor:
    """The last stage's own parameters' entries, as one vector."""
    return oracles.flatten(by_name, oracles.own_names(case.stages[-1]))


# The query


def test_scores_are_linear_in_the_query():
    case = STRONG_RIDGE
    sets = [TensorDataset(case.query_x[rows], case.query_y[rows]) for rows in (slice(0, 3), slice(3, None))]
    first, second, both = (traced(case, Query(data, reduction="sum")) for data in (*sets, ConcatDataset(sets)))
    for name in both:
        torch.testing.assert_close(first[name].values + second[name].values, both[name].values, rtol=1e-9, atol=1e-12)


def test_the_query_s_batch_size_changes_nothing():
    case = STRONG_RIDGE
    assert_same_scores(traced(case, query_of(case, batch_size=3)), traced(case, query_of(case)))


# The order and form of the data


@named((FROZEN_LOGISTIC, STRONG_TANH))
def test_the_batch_size_changes_nothing(case: ChainCase):
    expected = baseline(case)
    for size in (1, 1000):
        stages = {stage.name: {"batch_size": size} for stage in case.stages}
        assert_same_scores(traced(case, stages=stages), expected)


def test_scores_follow_a_permutation_of_the_data():
    case, expected = FROZEN_RIDGE, baseline(FROZEN_RIDGE)
    orders = {stage.name: torch.randperm(len(stage.x)) for stage in case.stages}
    stages = {s.name: {"data": TensorDataset(s.x[orders[s.name]], s.y[orders[s.name]])} for s in case.stages}
    permuted = traced(case, stages=stages)
    for name, order in orders.items():
        torch.testing.assert_close(permuted[name].values, expected[name].values[order], rtol=1e-9, atol=1e-12)


def test_a_repeated_example_has_the_same_score_twice():
    case = FROZEN_RIDGE
    first = case.stages[0]
    twice = TensorDataset(torch.cat([first.x, first.x[:4]]), torch.cat([first.y, first.y[:4]]))
    values = traced(case, stages={first.name: {"data": twice}})[first.name].values
    torch.testing.assert_close(values[:4], values[-4:], rtol=1e-12, atol=0)


@named((FROZEN_RIDGE, STRONG_TANH))
@pytest.mark.parametrize("solver", [Direct(), Lanczos(damping=1e-3)], ids=repr)
def test_repeated_runs_are_bitwise_identical(case: ChainCase, solver: Direct | Lanczos):
    one, other = (traced(case, solver=solver, parts=True) for _ in range(2))
    for name in one:
        for what in ("values", "via_shared", "via_head"):
            assert torch.equal(getattr(one[name], what), getattr(other[name], what))


class Rows(Dataset):
    """A data set of dicts."""

    def __init__(self, x: Tensor, y: Tensor, label: str) -> None:
        self.x, self.y, self.label = x, y, label

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], self.label: self.y[index]}


@named((FROZEN_RIDGE, FROZEN_LOGISTIC))
@pytest.mark.parametrize("label", ["labels", "label"])
def test_dict_batches_equal_tuple_batches(case: ChainCase, label: str):
    stages = {s.name: {"data": Rows(s.x, s.y, label)} for s in case.stages}
    query = Query(Rows(case.query_x, case.query_y, label))
    quick = Identity()
    assert_same_scores(traced(case, query, stages, curvature=quick), traced(case, curvature=quick), tolerance=1e-12)


def test_a_list_of_pairs_equals_a_tensor_data_set():
    case = FROZEN_LOGISTIC
    stages = {s.name: {"data": list(zip(s.x, s.y, strict=True))} for s in case.stages}
    query = Query([(x, int(y)) for x, y in zip(case.query_x, case.query_y, strict=True)])
    quick = Identity()
    assert_same_scores(traced(case, query, stages, curvature=quick), traced(case, curvature=quick), tolerance=1e-12)


@named((FROZEN_RIDGE, FROZEN_LOGISTIC))
def test_a_hugging_face_data_set_equals_a_tensor_data_set(case: ChainCase):
    """Its torch format yields float32, so the values are rounded to float32 first; both then say the same."""

    def hugging_face(x: Tensor, y: Tensor) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"x": x.tolist(), "labels": y.tolist()}).with_format("torch")

    def rounded(t: Tensor) -> Tensor:
        return t.float().double() if t.is_floating_point() else t

    pairs = {s.name: (rounded(s.x), rounded(s.y)) for s in case.stages}
    ours = {name: {"data": TensorDataset(*pair)} for name, pair in pairs.items()}
    theirs = {name: {"data": hugging_face(*pair)} for name, pair in pairs.items()}
    query = rounded(case.query_x), rounded(case.query_y)
    expected = traced(case, Query(TensorDataset(*query)), ours)
    assert_same_scores(traced(case, Query(hugging_face(*query)), theirs), expected, tolerance=1e-12)


# The models


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("solver", [Direct(), Lanczos()], ids=repr)
def test_models_are_left_as_they_were(training: bool, solver: Direct | Lanczos):
    case = THREE_FROZEN
    chain = chain_of(case, solved(case))
    for stage in chain.stages:
        stage.model.train(training)
        stage.model.get_submodule("embedding").train(not training)
    chain.stages[-1].model.get_parameter("head.bias").requires_grad_(False)
    before = [
        (state(s.model), [m.training for m in s.model.modules()], [p.requires_grad for p in s.model.parameters()])
        for s in chain.stages
    ]
    addresses = [[p.data_ptr() for p in s.model.parameters()] for s in chain.stages]
    trace(chain, query_of(case), curvature=Hessian(), solver=solver)
    for stage, (values, modes, flags), where in zip(chain.stages, before, addresses, strict=True):
        after = stage.model.state_dict()
        assert list(after) == list(values)
        assert all(torch.equal(after[name], values[name]) for name in values)
        assert [m.training for m in stage.model.modules()] == modes
        assert [p.requires_grad for p in stage.model.parameters()] == flags
        assert [p.data_ptr() for p in stage.model.parameters()] == where
        assert all(p.grad is None for p in stage.model.parameters())


def test_gradients_that_were_there_stay():
    case = FROZEN_RIDGE
    chain = chain_of(case, solved(case))
    for stage in chain.stages:
        for parameter in stage.model.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
    trace(chain, query_of(case), **EXACT)
    assert all((p.grad == 3.0).all() for stage in chain.stages for p in stage.model.parameters())


def test_tracing_works_without_gradients_switched_on():
    case = FROZEN_RIDGE
    with torch.no_grad():
        quiet = baseline(case)
    assert_same_scores(quiet, baseline(case), tolerance=0.0)


def test_float32_models_give_float64_scores_close_to_those_in_float64():
    case = FROZEN_LOGISTIC
    models = {stage.name: {"model": stage.model.float()} for stage in chain_of(case, solved(case)).stages}
    single = traced(case, stages=models)
    assert all(single[name].values.dtype == torch.float64 for name in single)
    assert_same_scores(single, baseline(case), tolerance=1e-4)


# The curvature


@named(RIDGES)
def test_gauss_newton_equals_the_hessian_of_a_linear_model(case: ChainCase):
    assert_same_scores(traced(case, curvature=GaussNewton()), baseline(case))


def test_gauss_newton_differs_from_the_hessian_of_a_curved_model():
    case = STRONG_TANH
    name = case.stages[0].name
    exact, approximate = (traced(case, curvature=c)[name].values for c in (Hessian(), GaussNewton()))
    assert (exact - approximate).abs().max() > 1e-2 * exact.abs().max()


@named((FROZEN_RIDGE, FROZEN_LOGISTIC))
@pytest.mark.parametrize("curvatures", ["identity twice", "identity first"])
def test_identity_curvature_of_a_frozen_chain_is_a_gradient_product(case: ChainCase, curvatures: str):
    """`score_i = - g_i . (q_W - F_WT v)`, with `v = q_T` or, where only the first stage has it, `v = F_TT^-1 q_T`."""
    first, last = case.stages
    gradient = query_gradient(case)
    adjoint = own_part(case, gradient)
    chosen: Any = Identity()
    if curvatures == "identity first":
        chosen = {first.name: Identity(), last.name: Hessian()}
        adjoint = torch.linalg.solve(oracles.stage_hessian(case, 1), adjoint)
    by_previous = oracles.unflatten_rows(-oracles.mixed_derivative(case, 1).T @ adjoint.unsqueeze(1), first)
    pulled = {name: by_previous[name].squeeze(1) for name in oracles.own_names(first)}
    for here, there in oracles.kept_names(last).items():
        pulled[there] = pulled[there] + gradient[here].flatten()
    expected = -oracles.example_gradients(case, 0).T @ torch.cat(list(pulled.values()))
    result = traced(case, curvature=chosen)
    torch.testing.assert_close(result[first.name].values, expected, rtol=1e-9, atol=1e-11)
    expected = -oracles.example_gradients(case, 1).T @ adjoint
    torch.testing.assert_close(result[last.name].values, expected, rtol=1e-9, atol=1e-11)


@named((FROZEN_LOGISTIC, STRONG_TANH))
@pytest.mark.parametrize(
    "solver", [Lanczos(damping=0.01, rtol=1e-10), Normal(CG(rtol=1e-12), damping=0.01), Direct(damping=0.01)], ids=repr
)
def test_the_papers_damped_inverse(case: ChainCase, solver: Any):
    """`v = (H^2 + damping I)^-1 H q` at the last stage."""
    curvature, gradient = oracles.stage_hessian(case, 1), own_part(case, query_gradient(case))
    damped = curvature @ curvature + 0.01 * torch.eye(len(curvature), dtype=torch.float64)
    expected = -oracles.example_gradients(case, 1).T @ torch.linalg.solve(damped, curvature @ gradient)
    last = case.stages[1].name
    values = traced(case, solver=solver, of=[last])[last].values
    torch.testing.assert_close(values, expected, rtol=1e-7, atol=1e-8 * float(expected.abs().max()))


def test_conjugate_gradients_at_a_minimum_equal_the_dense_inverse():
    assert_same_scores(traced(STRONG_TANH, solver=CG(rtol=1e-12)), baseline(STRONG_TANH), tolerance=1e-8)


def test_weight_decay_is_in_the_curvature():
    """At the same parameters: `H + 0.5 I` in place of `H`."""
    case = FROZEN_LOGISTIC
    last = case.stages[1]
    curvature, gradient = oracles.stage_hessian(case, 1), own_part(case, query_gradient(case))
    more = curvature + 0.5 * torch.eye(len(curvature), dtype=torch.float64)
    expected = -oracles.example_gradients(case, 1).T @ torch.linalg.solve(more, gradient)
    values = traced(case, stages={last.name: {"weight_decay": last.weight_decay + 0.5}})[last.name].values
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-11)


def test_weight_decay_is_not_in_an_example_s_gradient():
    case = FROZEN_LOGISTIC
    heavier = {stage.name: {"weight_decay": 5.0} for stage in case.stages}
    assert_same_scores(traced(case, stages=heavier, curvature=Identity()), traced(case, curvature=Identity()), 0.0)


def test_scores_of_a_stage_without_penalties_sum_to_zero():
    """The sum is `- n (mean gradient) . v`, and at the minimum of the mean loss its gradient vanishes."""
    for case, position in ((FROZEN_RIDGE, 1), (STRONG_RIDGE, 0)):
        scores = baseline(case)[case.stages[position].name]
        assert case.stages[position].weight_decay == 0.0
        assert abs(scores.values.sum()) < 1e-10 * scores.values.abs().sum()


# The links


@named((STRONG_RIDGE, STRONG_LOGISTIC, STRONG_TANH))
def test_alpha_estimated_at_a_stationary_stage_is_the_alpha_it_was_solved_with(case: ChainCase):
    """`alpha = - <dF/dW, W - W'> / (2 |W - W'|^2)` with the weight decay in F; so the scores are the same too."""
    last = case.stages[1]
    auto = {last.name: {"link": Proximal(last.link.shared, alpha="auto")}}
    assert chain_of(case, solved(case), **auto).last.link_settings == {"alpha": pytest.approx(0.5, rel=1e-10)}
    assert_same_scores(traced(case, stages=auto), baseline(case), tolerance=1e-9)


@pytest.mark.parametrize("shared", ["embedding", ["embedding"], {"embedding": "embedding"}], ids=repr)
def test_shared_names_can_be_written_in_three_ways(shared: Any):
    stages = {FROZEN_RIDGE.stages[1].name: {"link": Frozen(shared)}}
    assert_same_scores(traced(FROZEN_RIDGE, stages=stages), baseline(FROZEN_RIDGE), tolerance=0.0)


# What is scored, and by what


def test_of_limits_the_stages_that_are_scored():
    whole = baseline(THREE_FROZEN)
    for chosen in (["second"], ["third", "first"]):
        some = traced(THREE_FROZEN, of=chosen)
        assert set(some) == set(chosen)
        for name in chosen:
            torch.testing.assert_close(some[name].values, whole[name].values, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"of": ["pretrian"]},
        {"curvature": {"pretrian": Hessian()}},
        {"solver": {"pretrian": Direct()}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_unknown_stage_names_are_refused(settings: dict[str, Any]):
    with pytest.raises(ValueError, match=r"pretrian.*pretrain"):
        traced(FROZEN_RIDGE, **settings)


def test_a_mapping_by_stage_equals_one_setting_for_all():
    case = FROZEN_RIDGE
    names = [stage.name for stage in case.stages]
    mapped = traced(case, curvature=dict.fromkeys(names, Hessian()), solver=dict.fromkeys(names, Direct()))
    assert_same_scores(mapped, baseline(case), tolerance=0.0)


def test_gauss_newton_of_a_plain_loss_function_is_refused():
    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return Classification().losses(model(batch[0]), batch)

    stages = {"pretrain": {"objective": losses}}
    with pytest.raises(ValueError, match="GaussNewton"):
        traced(FROZEN_LOGISTIC, stages=stages, curvature=GaussNewton())


def test_a_frozen_link_between_different_values_is_refused():
    case = FROZEN_RIDGE
    moved = {name: value + 1e-9 for name, value in solved(case)[1].items()}
    with pytest.raises(ValueError, match="embedding"):
        chain_of(case, (solved(case)[0], moved))


def test_one_stage_is_the_ordinary_influence_function():
    """A chain of the first stage alone: `score_i = - g_i . H^-1 dq`."""
    case = FROZEN_LOGISTIC
    first = case.stages[0]
    point = solved(case)[0]
    own = oracles.own_solution(case, 0)[0]
    gradient = torch.func.grad(
        lambda own: oracles.losses(first, oracles.complete(first, own, {}), case.query_x, case.query_y).mean()
    )(own)
    expected = -oracles.example_gradients(case, 0).T @ torch.linalg.solve(oracles.stage_hessian(case, 0), gradient)
    chain = Chain(chain_of(case, (point, solved(case)[1])).stages[0])
    torch.testing.assert_close(
        trace(chain, query_of(case), **EXACT)[first.name].values, expected, rtol=1e-9, atol=1e-11
    )
