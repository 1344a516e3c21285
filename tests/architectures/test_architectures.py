"""The architectures people use: scores and curvature products against plain autograd, and a whole trace."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from stagetrace import Hessian
from stagetrace.errors import DifferentiationError
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.risk import Risk
from stagetrace.tracing.contract import choose, contract
from tests.architectures.zoo import LANGUAGE, LAYERS, Case

ZOO = [*LANGUAGE, *LAYERS]
TWICE = [case for case in ZOO if case.second]
SINGLE = 500 * torch.finfo(torch.float32).eps  # some layers of roundings, relatively to the gradients


def of(cases: list[Case]) -> pytest.MarkDecorator:
    """Each case; those that differ from another by their kernel only are slow."""
    slow = [case.name.endswith(", eager") for case in cases]
    params = [pytest.param(c, id=c.name, marks=pytest.mark.slow if s else ()) for c, s in zip(cases, slow, strict=True)]
    return pytest.mark.parametrize("case", params)


def risk_of(case: Case, dtype: torch.dtype) -> Risk:
    return BoundStage.of(case.stage(case.model(dtype)), None).risk


def directions(size: int, columns: int) -> Tensor:
    return torch.randn(size, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


@of(ZOO)
def test_scores_are_gradients_by_plain_autograd(case: Case):
    gradients = case.gradients()
    for dtype, tolerance in ((torch.float64, case.tolerance), (torch.float32, SINGLE)):
        risk = risk_of(case, dtype)
        batch = next(iter(risk.read([range(len(risk.examples))])))
        for columns in (1, 3):
            lambdas = directions(risk.trained.size, columns)
            way, why, _ = choose(risk, next(iter(risk.read([[0, 1]]))), columns)
            assert columns > 1 or case.way in (None, way), why
            found = contract(way, risk, batch, lambdas.to(dtype))[1]
            gap = float((found.double() - gradients @ lambdas).abs().max())
            assert gap <= tolerance * float(torch.linalg.vector_norm(gradients, dim=1).max()), (way, why, gap)


def without_padding(model: nn.Module, v: Tensor) -> Tensor:
    """The direction without the vectors of padding tokens: to training these are constants, whatever v says."""
    directed = copy.deepcopy(model)
    vector_to_parameters(v.clone(), directed.parameters())
    for module in directed.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx] = 0
    return parameters_to_vector(directed.parameters()).detach()


def mean_gradient(case: Case, model: nn.Module) -> Tensor:
    return case.gradients(model).mean(dim=0)


@of(TWICE)
def test_hessian_products_are_differences_of_gradients(case: Case):
    model = case.model()
    bound = BoundStage.of(case.stage(model), None)
    v = directions(bound.trained.size, 1)[:, 0]
    found, centre, step = Hessian().operator(bound) @ v, parameters_to_vector(model.parameters()).detach(), 1e-4
    v = without_padding(model, v)

    def moved(by: float) -> Tensor:
        # fourth-order differences; the model is a copy, since parameters are written to
        other = case.model()
        vector_to_parameters(centre + by * step * v / torch.linalg.vector_norm(v), other.parameters())
        return mean_gradient(case, other)

    slope = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * step) * torch.linalg.vector_norm(v)
    rounding = 1e-7 if case.tolerance < 1e-8 else 5e-2  # differences magnify what float32 inside leaves
    assert float((found - slope).abs().max()) <= rounding * float(slope.abs().max())


def test_a_function_that_is_differentiable_once_is_named():
    (case,) = (case for case in ZOO if not case.second)
    bound = BoundStage.of(case.stage(case.model()), None)
    with pytest.raises(DifferentiationError, match=r"stage 'only': the Hessian needs second derivatives.*once_diff"):
        _ = Hessian().operator(bound) @ directions(bound.trained.size, 1)
