"""Scores of every stage against stages that were really solved again, and against the same maths on dense matrices."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import Direct, Hessian, Lanczos, Objective, Proximal, Trace, trace
from stagetrace.progress import Silent
from stagetrace.results.parts import join
from stagetrace.stages.bound import BoundStage
from stagetrace.tracing.backward import backward_pass
from stagetrace.tracing.responses.implicit import Implicit
from stagetrace.tracing.responses.response import Response
from tests import oracles
from tests.chains import (
    CASES,
    FROZEN_LOGISTIC,
    FROZEN_RIDGE,
    FROZEN_TANH,
    OBJECTIVES,
    REPRESENTATIVES,
    RIDGES,
    STRONG_LOGISTIC,
    STRONG_TANH,
    THREE_FROZEN,
    ChainCase,
    chain_of,
    query_of,
)
from tests.oracles import Slip, dense_parts, dense_scores, solved, truth

EXACT: dict[str, Any] = {"curvature": Hessian(), "solver": Direct()}
FROZEN = tuple(case for case in CASES if all(link.keeps for link in case.links))
PULLED = tuple(case for case in CASES if not any(link.keeps for link in case.links))
SOME = tuple(case for case in CASES if case.name in REPRESENTATIVES | {"tanh three, proximal then frozen"})


def named(cases: tuple[ChainCase, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def quick(cases: tuple[ChainCase, ...]) -> pytest.MarkDecorator:
    """Every case; those that are no representatives are slow."""
    params = [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case not in SOME)) for case in cases]
    return pytest.mark.parametrize("case", params)


@lru_cache
def traced(case: ChainCase, *, reduction: str = "mean", **settings: Any) -> Trace:
    """The trace of a case, by the exact Hessian and a dense solve unless told otherwise; never traced twice."""
    return trace(chain_of(case, solved(case)), query_of(case, reduction=reduction), **(EXACT | settings))


def miss(values: Tensor, expected: Tensor) -> float:
    """The largest error over the largest truth."""
    return float((values - expected).abs().max() / expected.abs().max())


def assert_agree(values: Tensor, expected: Tensor, tolerance: float) -> None:
    """Agree relatively to the largest entry, and each entry above a hundredth of it relatively to itself."""
    assert values.shape == expected.shape
    assert values.dtype == torch.float64
    assert miss(values, expected) <= tolerance
    large = expected.abs() > 0.01 * expected.abs().max()
    assert large.any()
    assert ((values - expected).abs() <= tolerance * expected.abs())[large].all()


# The truth itself


@named(CASES)
@pytest.mark.slow
def test_the_two_oracles_agree(case: ChainCase):
    for position in range(len(case.stages)):
        assert_agree(dense_scores(case, position), truth(case, position), 1e-7)


@named(RIDGES)
def test_ridge_by_hand_agrees_with_the_oracles(case: ChainCase):
    for position, scores in enumerate(oracles.ridge_by_hand(case)):
        # a wider shift than elsewhere leaves less of rounding, and these losses are quadratic in the parameters
        expected = truth(case, position, h=1e-4).mean(dim=0)
        assert_agree(torch.from_numpy(scores), expected, 1e-8)


@pytest.mark.slow
@named(CASES)
def test_the_examples_of_every_stage_matter(case: ChainCase):
    for position in range(len(case.stages)):
        assert truth(case, position).abs().max() > 1e-3


# Scores


@quick(CASES)
def test_scores_equal_the_resolved_query_loss(case: ChainCase):
    result = traced(case)
    for position, stage in enumerate(case.stages):
        expected = truth(case, position).mean(dim=0)
        assert_agree(result[stage.name].values, expected, case.tolerance)
        assert torch.equal(result[stage.name].removal_effect, -result[stage.name].values / len(stage.x))


@quick(CASES)
def test_scores_equal_the_implicit_function_theorem_to_rounding(case: ChainCase):
    result = traced(case)
    for position, stage in enumerate(case.stages):
        assert_agree(result[stage.name].values, dense_scores(case, position).mean(dim=0), 1e-9)


@named(SOME)
def test_scores_by_lanczos_equal_the_resolved_query_loss(case: ChainCase):
    result = traced(case, solver=Lanczos(damping=0.0, rtol=1e-10))
    for position, stage in enumerate(case.stages):
        assert_agree(result[stage.name].values, truth(case, position).mean(dim=0), case.tolerance)


@named((FROZEN_LOGISTIC, STRONG_TANH))
@pytest.mark.parametrize(
    ("curvature", "traced_from"),
    [
        pytest.param(Hessian(), 1, id="traced", marks=pytest.mark.slow),
        pytest.param(Hessian(memory=1), 1, id="computed anew", marks=pytest.mark.slow),
        pytest.param(Hessian(), 10**9, id="kept"),
    ],
)
def test_scores_chunk_by_chunk_equal_the_resolved_query_loss(
    case: ChainCase, curvature: Hessian, traced_from: int, monkeypatch: pytest.MonkeyPatch
):
    """However the curvature's products are computed; in chunks of 5 examples, of which the last is smaller."""
    monkeypatch.setattr("stagetrace.curvature.plan.CHUNK_EXAMPLES", 5)
    monkeypatch.setattr("stagetrace.curvature.plan._traced_from", lambda *_: traced_from)
    result = trace(chain_of(case, solved(case)), query_of(case), curvature=curvature, solver=Direct())
    for position, stage in enumerate(case.stages):
        assert_agree(result[stage.name].values, truth(case, position).mean(dim=0), case.tolerance)


@named(RIDGES)
def test_scores_of_ridge_equal_the_closed_form(case: ChainCase):
    result = traced(case)
    for stage, expected in zip(case.stages, oracles.ridge_by_hand(case), strict=True):
        assert_agree(result[stage.name].values, torch.from_numpy(expected), 1e-10)


@named((FROZEN_RIDGE, FROZEN_LOGISTIC, STRONG_LOGISTIC))
def test_removal_effect_predicts_the_loss_without_half_an_example(case: ChainCase):
    """Not a derivative: the query loss with half an example's weight gone, in stages solved again."""
    result = traced(case)
    for position, stage in enumerate(case.stages):
        full = oracles.mean_weights(stage)
        before = oracles.query_losses(case, solved(case)[-1]).mean()
        halved = full - torch.diag(full) / 2
        after = oracles.solved_again(case, position, halved).mean(dim=1)
        predicted, measured = result[stage.name].removal_effect / 2, after - before
        assert torch.corrcoef(torch.stack([predicted, measured]))[0, 1] > 0.98
        assert 0.8 < (predicted @ measured) / (predicted @ predicted) < 1.25


@named((FROZEN_RIDGE, STRONG_TANH))
def test_a_plain_loss_function_gives_the_same_scores(case: ChainCase):
    def plain(loss: str):
        def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            x, y = batch
            if loss == "squared":
                return oracles.squared_factor(y.shape[1]) * (model(x) - y).square().sum(dim=1)
            return nn.functional.cross_entropy(model(x), y, reduction="none")

        return losses

    changes = {stage.name: {"objective": plain(stage.loss)} for stage in case.stages}
    result = trace(chain_of(case, solved(case), **changes), query_of(case), **EXACT)
    for position, stage in enumerate(case.stages):
        assert_agree(result[stage.name].values, truth(case, position).mean(dim=0), case.tolerance)


class WithoutForwardMode(torch.autograd.Function):
    """The identity, twice differentiable backwards and not at all forwards."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.clone()


class WithVmap(WithoutForwardMode):
    """The same, for batches of gradients too."""

    generate_vmap_rule = True


@named((FROZEN_TANH, STRONG_LOGISTIC))
@pytest.mark.parametrize("operation", [WithoutForwardMode, WithVmap], ids=lambda operation: operation.__name__)
def test_scores_of_models_without_forward_mode_equal_the_resolved_query_loss(
    case: ChainCase, operation: type[WithoutForwardMode]
):
    class Backwards:
        def __init__(self, objective: Objective) -> None:
            self.objective = objective

        def outputs(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return operation.apply(self.objective.outputs(model, batch))

        def losses(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
            return self.objective.losses(outputs, batch)

    changes = {stage.name: {"objective": Backwards(OBJECTIVES[stage.loss])} for stage in case.stages}
    result = trace(chain_of(case, solved(case), **changes), query_of(case), **EXACT)
    for position, stage in enumerate(case.stages):
        assert_agree(result[stage.name].values, truth(case, position).mean(dim=0), case.tolerance)


@named((STRONG_LOGISTIC, THREE_FROZEN))
def test_reductions_of_the_query(case: ChainCase):
    mean, total, each = (traced(case, reduction=reduction) for reduction in ("mean", "sum", "none"))
    for position, stage in enumerate(case.stages):
        assert_agree(each[stage.name].values, truth(case, position), case.tolerance)
        assert_agree(each[stage.name].values.mean(dim=0), mean[stage.name].values, 1e-10)
        assert_agree(total[stage.name].values, len(case.query_x) * mean[stage.name].values, 1e-10)


def test_a_query_by_another_loss():
    """The query's own objective counts, not the last stage's."""
    case = FROZEN_LOGISTIC

    def twice(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 2 * nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    result = trace(chain_of(case, solved(case)), query_of(case, objective=twice), **EXACT)
    for position, stage in enumerate(case.stages):
        assert_agree(result[stage.name].values, 2 * truth(case, position).mean(dim=0), case.tolerance)


# Each response


RESPONSES: dict[str, Callable[[BoundStage], Response]] = {
    "implicit": lambda bound: Implicit(bound, Hessian(), Direct()),
}
"""The table of responses: each is held against stages that are really solved again."""


@named(SOME)
@pytest.mark.parametrize("name", RESPONSES)
def test_scores_by_each_response_equal_the_resolved_query_loss(case: ChainCase, name: str):
    chain, query, quiet, walked = chain_of(case, solved(case)), query_of(case), Silent(), list[str]()
    responses = {bound.name: RESPONSES[name](bound) for bound in chain}
    for bound, back in backward_pass(chain, responses, query.gradient(chain.last, quiet), lambda stage: None, quiet):
        parts = back.scorer(parts=False, rows=None).run(lambda number: None, lambda number, part: None, quiet)
        expected = truth(case, chain.names.index(bound.name)).mean(dim=0)
        assert_agree(join(bound.name, parts).values, expected, case.tolerance)
        walked.append(bound.name)
    assert walked == [*reversed(chain.names)]


# The two parts


@named(SOME)
def test_parts_are_the_papers_two_terms(case: ChainCase):
    """Of the first stage the terms of (11) and (13); of any stage, what came through the last link and what did not."""
    result, whole = traced(case, parts=True), traced(case)
    for position, stage in enumerate(case.stages):
        scores = result[stage.name]
        shared, head = (part.mean(dim=0) for part in dense_parts(case, position))
        assert scores.via_shared is not None
        assert scores.via_head is not None
        close: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-9 * float(scores.values.abs().max())}
        torch.testing.assert_close(scores.via_shared, shared, **close)
        torch.testing.assert_close(scores.via_head, head, **close)
        assert_agree(scores.values, truth(case, position).mean(dim=0), case.tolerance)
        assert torch.equal(scores.values, scores.via_shared + scores.via_head)
        assert_agree(scores.values, whole[stage.name].values, 1e-10)
        assert whole[stage.name].via_shared is None
        assert whole[stage.name].via_head is None


@named((STRONG_LOGISTIC, THREE_FROZEN))
def test_parts_of_each_query_are_its_papers_two_terms(case: ChainCase):
    """One row for each query example: the columns of the two terms are not mixed up, nor one query's with another's."""
    result = traced(case, parts=True, reduction="none")
    for position, stage in enumerate(case.stages):
        scores, terms = result[stage.name], dense_parts(case, position)
        assert scores.via_shared is not None
        assert scores.via_head is not None
        for found, expected in zip((scores.via_shared, scores.via_head), terms, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9 * float(scores.values.abs().max()))
        assert_agree(scores.values, truth(case, position), case.tolerance)
        assert torch.equal(scores.removal_effect, -scores.values / len(stage.x))


# Limits


@named((FROZEN_RIDGE, FROZEN_LOGISTIC, FROZEN_TANH))
@pytest.mark.filterwarnings("ignore::stagetrace.errors.ConvergenceWarning")  # with a condition number above 1e8
def test_a_strong_pull_equals_frozen(case: ChainCase):
    """At the frozen solution a growing alpha pins the shared parameters: the error is of the order of |H| / 2 alpha."""
    points = solved(case)
    exact = trace(chain_of(case, points), query_of(case), **EXACT)
    proximal = {case.stages[1].name: {"link": Proximal(case.stages[1].link.shared, alpha=1e8)}}
    pulled = trace(chain_of(case, points, **proximal), query_of(case), **EXACT)
    first = case.stages[0].name
    assert miss(pulled[first].values, exact[first].values) <= 1e-6


# Whether these comparisons could fail: the truth against deliberate mistakes


@quick(FROZEN)
def test_the_oracle_rejects_a_flipped_sign(case: ChainCase):
    expected = truth(case, 0).mean(dim=0)
    assert miss(dense_scores(case, 0, Slip(mixed=-1.0)).mean(dim=0), expected) > 1e-2


@quick(FROZEN)
def test_the_oracle_rejects_a_dropped_mixed_term(case: ChainCase):
    expected = truth(case, 0).mean(dim=0)
    assert miss(dense_scores(case, 0, Slip(mixed=0.0)).mean(dim=0), expected) > 1e-2


@quick(FROZEN)
def test_the_oracle_rejects_a_dropped_direct_term(case: ChainCase):
    expected = truth(case, 0).mean(dim=0)
    assert miss(dense_scores(case, 0, Slip(direct=0.0)).mean(dim=0), expected) > 1e-2


@pytest.mark.slow
@named(PULLED)
def test_the_oracle_rejects_a_forgotten_two_in_two_alpha(case: ChainCase):
    expected = truth(case, 0).mean(dim=0)
    assert miss(dense_scores(case, 0, Slip(pull=0.5)).mean(dim=0), expected) > 1e-2


@pytest.mark.slow
@named(CASES)
def test_the_oracle_rejects_a_tenth_of_the_weight_decay(case: ChainCase):
    for position in range(len(case.stages)):
        if any(stage.weight_decay for stage in case.stages[position:]):
            expected = truth(case, position).mean(dim=0)
            assert miss(dense_scores(case, position, Slip(decay=0.1)).mean(dim=0), expected) > 1e-2


@quick(tuple(case for case in CASES if not oracles.shares_all(case)))
def test_the_oracle_rejects_an_inverse_of_the_shared_block_alone(case: ChainCase):
    expected = truth(case, 0).mean(dim=0)
    assert miss(dense_scores(case, 0, Slip(joint=False)).mean(dim=0), expected) > 1e-2


def test_batches_of_unequal_size_would_show():
    """Averaging batch means, instead of examples, changes the curvature: 23 examples make batches of 5, 5, 5, 5, 3."""
    case = FROZEN_LOGISTIC
    stage = case.stages[0]
    blocks = torch.arange(len(stage.x)).split(stage.batch_size)
    weights = torch.cat([torch.full((len(block),), 1 / len(blocks) / len(block)) for block in blocks]).double()
    own, previous = oracles.own_solution(case, 0)

    def curvature(weights: Tensor) -> Tensor:
        return torch.func.hessian(lambda own: oracles.objective(stage, own, previous, weights))(own)

    assert miss(curvature(weights), curvature(oracles.mean_weights(stage))) > 1e-2
