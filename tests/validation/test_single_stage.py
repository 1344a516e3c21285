"""Influence as if there were one stage: against the dense formula."""

import pytest
import torch
from torch import Tensor
from torch.func import hessian
from torch.utils.data import TensorDataset

from stagetrace import Chain, Direct, GaussNewton, Hessian, Identity, Lanczos, Query
from stagetrace.errors import CurvatureWarning, DescriptionError
from stagetrace.validation.estimators import Influence, SingleStage
from tests.chains import CASES, STRONG_TANH, ChainCase, chain_of, each_place, query_of
from tests.oracles import flatten, losses, own_names, previous_names, solved, unflatten
from tests.validation.shared import RENAMED, composed, dots, example_gradients, query_gradients, reduced, shared

may_be_indefinite = pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning")
"""All of a fine-tuned model's parameters together need not be at a minimum of its stage's loss."""


def single_stage(case: ChainCase, position: int) -> Tensor:
    """`+ 1/n (d loss_i / dW) . [H^-1 dq/dtheta]_W`, dense, `[q, n]`."""
    last, points = case.stages[-1], solved(case)
    theta = [name for name in last.initial() if name in own_names(last) or name in previous_names(last)]

    def mean_loss(vector: Tensor) -> Tensor:
        point = {**points[-1], **unflatten(vector, points[-1], theta)}
        return losses(last, point, last.x, last.y).mean() + last.weight_decay / 2 * vector.square().sum()

    curvature = hessian(mean_loss)(flatten(points[-1], theta))
    adjoints = [torch.linalg.solve(curvature, flatten(gradient, theta)) for gradient in query_gradients(case)]

    point, names = dict(points[position]), composed(case, position)
    for other in set(names.values()):
        values = [points[-1][name] for name in names if names[name] == other]
        point[other] = sum(values[1:], values[0]) / len(values)
    examples = example_gradients(case, position, point)
    return dots(case, position, [unflatten(adjoint, points[-1], theta) for adjoint in adjoints], examples)


@may_be_indefinite
@each_place(RENAMED)
def test_single_stage_equals_the_dense_formula(case: ChainCase, position: int):
    chain, name = chain_of(case, solved(case)), case.stages[position].name
    estimator = SingleStage(solver=Direct())
    if not shared(case, position):
        with pytest.raises(DescriptionError, match=f"no parameter that stage '{name}' trained.*Influence"):
            estimator.removal_effects(chain, query_of(case), name)
        return
    expected = single_stage(case, position)
    assert expected.abs().max() > 1e-6
    for reduction in ("mean", "sum", "none"):
        found = estimator.removal_effects(chain, query_of(case, reduction=reduction), name)
        torch.testing.assert_close(found, reduced(expected, reduction), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("curvature", [None, GaussNewton(), Identity()])
@pytest.mark.parametrize("case", CASES[:8], ids=lambda case: case.name)
def test_single_stage_of_one_stage_is_ordinary_influence(case, curvature):
    chain = Chain(chain_of(case, solved(case)).stages[0])
    query = Query(TensorDataset(case.stages[0].x[:4] + 0.1, case.stages[0].y[:4]))
    found, expected = (
        estimator(curvature, Lanczos(damping=1e-3)).removal_effects(chain, query, chain.names[0])
        for estimator in (SingleStage, Influence)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_single_stage_takes_the_last_stages_settings_of_a_mapping():
    case = STRONG_TANH
    chain, query = chain_of(case, solved(case)), query_of(case)
    curvature = {"pretrain": Hessian(), "finetune": GaussNewton()}
    solver = {"pretrain": Direct(damping=3.0), "finetune": Direct(damping=0.1)}
    found = SingleStage(curvature, solver).removal_effects(chain, query, "pretrain")
    expected = SingleStage(GaussNewton(), Direct(damping=0.1)).removal_effects(chain, query, "pretrain")
    assert torch.equal(found, expected)
    other = SingleStage(GaussNewton(), Direct(damping=3.0)).removal_effects(chain, query, "pretrain")
    assert not torch.allclose(found, other)


def test_single_stage_warns_of_an_indefinite_curvature():
    case = next(case for case in CASES if case.name == "tanh, frozen")
    chain = chain_of(case, solved(case))
    with torch.no_grad():  # far from a minimum
        dict(chain.last.stage.model.named_parameters())["head.weight"].add_(5.0)
    with pytest.warns(CurvatureWarning, match="'finetune'"):
        SingleStage(solver=Direct()).removal_effects(chain, query_of(case), "pretrain")
