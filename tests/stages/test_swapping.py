"""Other values in the places of a model's parameters: the same function however modules and weights are shared."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import Chain, Direct, GaussNewton, Hessian, Lanczos, Query, Stage, trace
from stagetrace.curvature.chunk import hessian_linearised, hessian_recomputed, hessian_retained_graph
from stagetrace.curvature.gauss_newton import (
    gauss_newton_by_reverse,
    gauss_newton_linearised,
    gauss_newton_retained_graph,
)
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Classification
from stagetrace.stages.evaluation import Evaluation
from stagetrace.stages.gradient import batch_gradient
from stagetrace.tracing.contract import forward_mode, one_by_one, per_example

WORDS = 6
WORDS_IN = torch.randint(0, WORDS, (9,), generator=torch.Generator().manual_seed(1))
WORDS_OUT = torch.randint(0, WORDS, (9,), generator=torch.Generator().manual_seed(2))
DATA = list(zip(WORDS_IN, WORDS_OUT, strict=True))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(WORDS, 3), nn.Linear(3, 3)


class Tied(nn.Module):
    """Words in, words out, by one table."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.head = nn.Linear(3, WORDS, bias=False)
        self.head.weight = self.body.table.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body.mix(self.body.table(words))))


class Aliased(Tied):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = self.body.table

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body.mix(self.embed(words))))


class AliasedFirst(Aliased):
    """The other name comes first, so that the parameter is known by it."""

    def __init__(self) -> None:
        super().__init__()
        inner = self.body
        del self.body, self.embed
        self.embed, self.body = inner.table, inner


class Wrapped(nn.Module):
    """The whole model again under a second name, as wrappers keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Aliased()
        self.shortcut = nn.ModuleList([self.inner.body, self.inner])

    def forward(self, words: Tensor) -> Tensor:
        return self.shortcut[1](words)


class Listed(Tied):
    """Parameters that are registered once more beside their modules."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters_again = nn.ParameterList([self.body.table.weight, self.body.mix.bias])

    def forward(self, words: Tensor) -> Tensor:
        table, bias = self.parameters_again
        return nn.functional.linear(torch.tanh(table[words] @ self.body.mix.weight.T + bias), table)


class Resized(Tied):
    """A table that was exchanged for a larger one after it had been tied, and tied again."""

    def __init__(self) -> None:
        super().__init__()
        larger = nn.Embedding(WORDS, 3)
        self.body.table = larger
        self.head.weight = larger.weight


class Recurrent(nn.Module):
    """A layer that keeps a flat list of its weights beside them, reachable by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 3)
        self.cell = nn.LSTM(3, 3, batch_first=True)
        self.again = self.cell
        self.head = nn.Linear(3, WORDS, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.again(self.table(words).unsqueeze(1))[0][:, 0])


class Scaled(Tied):
    """A parametrised weight."""

    def __init__(self) -> None:
        super().__init__()

        class Doubled(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return 2 * torch.tanh(weight)

        nn.utils.parametrize.register_parametrization(self.body.mix, "weight", Doubled())


MODELS = [Tied, Aliased, AliasedFirst, Wrapped, Listed, Resized, Recurrent, Scaled]


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


def bound_stage_of(model: nn.Module) -> Any:
    return Chain(Stage("only", model=model, objective=Classification(), data=DATA, weight_decay=2.0)).last


def dense(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Each example's gradient `[n, P]`, the Hessian and the Gauss-Newton matrix of the sum, by plain autograd."""
    parameters = list(model.parameters())

    def flat(tensors: Any) -> Tensor:
        return torch.cat([t.reshape(-1) for t in tensors])

    def rows(of: Tensor) -> Tensor:
        return torch.stack(
            [flat(torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True)) for one in of]
        )

    logits = model(WORDS_IN)
    losses = nn.functional.cross_entropy(logits, WORDS_OUT, reduction="none")
    slope = flat(torch.autograd.grad(losses.sum(), parameters, create_graph=True, materialize_grads=True))
    jacobian = rows(logits.reshape(-1)).reshape(*logits.shape, -1)
    p = torch.softmax(logits.detach(), 1)
    of_outputs = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return rows(losses), rows(slope), torch.einsum("ncp,ncd,ndq->pq", jacobian, of_outputs, jacobian)


@pytest.mark.parametrize("kind", MODELS)
def test_every_derivative_is_that_of_the_model_itself(kind: type[nn.Module]):
    """Asked again: what a way left behind would be in the next. (Recurrence works in place, which no trace follows.)"""
    model = made(kind)
    gradients, hessian, gauss_newton = dense(model)
    bound = bound_stage_of(model)
    risk = bound.risk
    batch = next(iter(risk.read([range(9)])))
    along = torch.randn(risk.trained.size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        torch.testing.assert_close(batch_gradient(risk, batch).trained[:, 0], gradients.sum(0))
        for way in (forward_mode, one_by_one) if kind is Recurrent else (forward_mode, per_example, one_by_one):
            torch.testing.assert_close(way(risk, batch, along)[1], gradients @ along)
    traced = [] if kind is Recurrent else [(hessian_linearised, hessian), (gauss_newton_linearised, gauss_newton)]
    anew = [(hessian_recomputed, hessian), (gauss_newton_by_reverse, gauss_newton)]
    kept = [(hessian_retained_graph, hessian), (gauss_newton_retained_graph, gauss_newton)]
    for product, matrix in (*traced, *kept, *anew, *kept):
        torch.testing.assert_close(product(risk, batch)(along), matrix @ along)


@pytest.mark.parametrize(
    ("kind", "solver"),
    [*((kind, Direct()) for kind in MODELS), *((kind, Lanczos(damping=0.0, rtol=1e-8)) for kind in (Tied, Recurrent))],
)
def test_scores_are_those_of_the_dense_computation(kind: type[nn.Module], solver: Any):
    model = made(kind)
    gradients, hessian, gauss_newton = dense(model)
    query = gradients.mean(0)
    for curvature, matrix in ((Hessian(), hessian), (GaussNewton(), gauss_newton)):
        adjoint = torch.linalg.solve(matrix / 9 + 2.0 * torch.eye(len(query), dtype=torch.float64), query)
        chain = Chain(Stage("only", model=model, objective=Classification(), data=DATA, weight_decay=2.0))
        for reduction in ("mean", "none") if (curvature, solver) == (Hessian(), Direct()) else ("mean",):
            values = trace(chain, Query(DATA, reduction=reduction), curvature=curvature, solver=solver)["only"].values
            got = values if reduction == "mean" else values.mean(0)
            torch.testing.assert_close(got, -(gradients @ adjoint), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", MODELS)
def test_the_users_model_keeps_its_parameters_and_ties(kind: type[nn.Module]):
    model = made(kind)
    before = dict(model.named_parameters(remove_duplicate=False))
    expected = model(WORDS_IN).detach()
    trace(Chain(bound_stage_of(model).stage), Query(DATA), curvature=GaussNewton(), solver=Lanczos(damping=1.0))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(before[name] is parameter for name, parameter in after.items())
    assert torch.equal(model(WORDS_IN), expected)


def test_parameters_are_put_back_after_an_error():
    model = made(Aliased)
    evaluation = Evaluation(model)
    before = dict(model.named_parameters(remove_duplicate=False))

    def fails(model: nn.Module) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluation({name: p.detach() + 1 for name, p in model.named_parameters()}, fails)
    assert all(before[name] is p for name, p in model.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("view", [lambda w: w.data, lambda w: w.detach().view(-1).view(WORDS, 3)])
def test_two_parameters_in_one_memory_are_refused(view: Any):
    model: Any = made(Tied)
    model.head.weight = nn.Parameter(view(model.body.table.weight))
    with pytest.raises(
        DescriptionError, match=r"'body\.table\.weight' and parameter 'head\.weight' are two tensors in the"
    ):
        bound_stage_of(model)
