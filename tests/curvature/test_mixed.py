"""The coupling of a stage to the parameters it inherited, against a block of the dense Hessian."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import Chain, Frozen, Stage
from stagetrace.curvature import mixed
from stagetrace.curvature.mixed import mixed_product
from stagetrace.errors import DifferentiationError
from stagetrace.objectives import Regression
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import Gradient
from stagetrace.tracing.pull_back import pull_back
from tests.curvature import specimens
from tests.curvature.specimens import ATTENTION, BACKWARDS, BAG, CONVOLUTIONAL, LSTM, MLP, ONCE, N, Specimen

CASES = [
    (MLP, "0"),
    (MLP, "2.weight"),
    (CONVOLUTIONAL, ["stem", "norm"]),
    (ATTENTION, ["embedding", "attention"]),
    (LSTM, "core"),
]
cased = pytest.mark.parametrize(("specimen", "shared"), CASES, ids=lambda value: getattr(value, "name", str(value)))


def linked(specimen: Specimen, shared: Any, dtype: torch.dtype = torch.float64, **changes: Any) -> BoundStage:
    """A stage that kept some of the previous stage's parameters; both have the same values."""
    before = specimen.stage(dtype, name="before")
    return Chain(before, specimen.stage(dtype, name="after", link=Frozen(shared), **changes)).last


def places(specimen: Specimen, bound: BoundStage) -> tuple[Tensor, Tensor]:
    """Where the inherited and the trained parameters lie among all of them."""
    names = [name for name, p in specimens.evaluated(specimen).named_parameters() for _ in range(p.numel())]
    kept = torch.tensor([name in bound.inherited_from for name in names])
    return kept.nonzero().squeeze(1), (~kept).nonzero().squeeze(1)


def block(specimen: Specimen, bound: BoundStage, indices: Any = slice(None)) -> Tensor:
    """`d2F / dW dTheta` of the dense oracle, `[inherited, own]`."""
    inherited, own = places(specimen, bound)
    return specimens.dense_hessians(specimen)[indices].mean(dim=0)[inherited][:, own]


@cased
@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_products_equal_the_dense_block(specimen: Specimen, shared: Any, way: str, monkeypatch: pytest.MonkeyPatch):
    if way == "reverse":

        def unavailable(*_: Any) -> Any:
            raise NotImplementedError("no forward mode")

        monkeypatch.setattr(mixed, "jvp", unavailable)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, specimens.SINGLE)):
        bound = linked(specimen, shared, dtype)
        expected = block(specimen, bound)
        adjoints = torch.randn(bound.trained.size, 3, dtype=dtype)
        adjoints[:, 1] = 0
        found = mixed_product(bound.risk, range(N), adjoints)
        assert found.dtype == dtype
        assert not found[:, 1].any()
        gap = (found.double() - expected @ adjoints.double()).abs().max()
        assert gap <= tolerance * expected.abs().max() * 10


def test_examples_and_batches_are_those_asked_for():
    adjoint = torch.randn(15, 1, dtype=torch.float64)
    for size in (1, 2, 100):
        bound = linked(MLP, "0", batch_size=size)
        found = mixed_product(bound.risk, [6, 1, 4], adjoint)
        torch.testing.assert_close(found, block(MLP, bound, [6, 1, 4]) @ adjoint, rtol=1e-10, atol=1e-14)


def test_nothing_is_coupled_to_nothing():
    first = MLP.bound()
    assert mixed_product(first.risk, range(N), torch.ones(31, 2, dtype=torch.float64)).shape == (0, 2)


@pytest.mark.parametrize(
    ("specimen", "shared"), [(BACKWARDS, "first"), (BACKWARDS, "last"), (ONCE, "first")], ids=lambda v: str(v)[:40]
)
def test_without_forward_mode_products_are_the_same(specimen: Specimen, shared: str):
    # An operation that is differentiable once can still be between the two, since then it is passed once.
    bound = linked(specimen, shared)
    plain = Specimen("plain", lambda: specimens.Through(lambda x: x), specimen.inputs)
    adjoint = torch.randn(bound.trained.size, 2, dtype=torch.float64)
    found = mixed_product(bound.risk, range(N), adjoint)
    torch.testing.assert_close(found, block(plain, linked(plain, shared)) @ adjoint, rtol=1e-10, atol=1e-14)


class PlainBag(specimens.Bag):
    """The same by an operation that has every derivative."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(nn.functional.embedding(tokens, self.bag.weight).mean(dim=1))


def test_a_kept_embedding_bag_is_differentiated_once_only():
    bound, plain = linked(BAG, "bag"), Specimen("plain", PlainBag, BAG.inputs, tokens=True)
    adjoint = torch.randn(bound.trained.size, 2, dtype=torch.float64)
    found = mixed_product(bound.risk, range(N), adjoint)
    torch.testing.assert_close(found, block(plain, linked(plain, "bag")) @ adjoint, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("specimen", "shared", "names"),
    [(BAG, "head", "_embedding_bag"), (ONCE, "last", "once_differentiable")],
    ids=["embedding bag", "once differentiable"],
)
def test_without_a_second_derivative_there_is_one_clear_error(specimen: Specimen, shared: str, names: str):
    bound = linked(specimen, shared)
    with pytest.raises(DifferentiationError) as caught:
        mixed_product(bound.risk, range(N), torch.ones(bound.trained.size, 1, dtype=torch.float64))
    message = str(caught.value)
    assert names in message
    assert "stage 'after': the coupling to the previous stage needs second derivatives" in message
    assert "replace that operation" in message


@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_an_inherited_parameter_that_is_not_used_is_not_coupled(way: str, monkeypatch: pytest.MonkeyPatch):
    if way == "reverse":
        monkeypatch.setattr(mixed, "coupling_of", mixed._reverse)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.used = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    bound = linked(Specimen("unused", Model, (3,)), "unused")
    assert not mixed_product(bound.risk, range(N), torch.ones(8, 1, dtype=torch.float64)).any()


@pytest.mark.parametrize("way", ["forward", "reverse"])
def test_a_loss_without_products_of_the_two_does_not_couple_them(way: str, monkeypatch: pytest.MonkeyPatch):
    if way == "reverse":
        monkeypatch.setattr(mixed, "coupling_of", mixed._reverse)

    def losses(model: Any, batch: Any) -> Tensor:
        return batch[0] @ (model[0].weight.sum(dim=0) + model[2].weight.sum()) + model[2].bias.sum()

    before = MLP.stage(name="before")
    bound = Chain(before, MLP.stage(name="after", objective=losses, link=Frozen("0"))).last
    assert not mixed_product(bound.risk, range(N), torch.ones(15, 1, dtype=torch.float64)).any()


# One previous parameter in two places


class Twice(nn.Module):
    """Two layers, `a` and `b`, that may start from the previous stage's one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).tanh()).tanh())


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3, bias=False), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


def test_contributions_of_a_parameter_kept_twice_add_up():
    previous, model = Single().double(), Twice().double()
    with torch.no_grad():
        model.a.weight.copy_(previous.layer.weight)
        model.b.weight.copy_(previous.layer.weight)
    x, y = torch.randn(N, 3, dtype=torch.float64), torch.randn(N, 2, dtype=torch.float64)

    def stage(name: str, model: nn.Module, **settings: Any) -> Stage:
        return Stage(name, model=model, objective=Regression(), data=list(zip(x, y, strict=True)), **settings)

    link = Frozen({"a": "layer", "b": "layer"})
    chain = Chain(stage("before", previous), stage("after", model, link=link))
    first, last = chain.bound_stages
    adjoint = torch.randn(last.trained.size, 1, dtype=torch.float64)
    direct = torch.randn(last.inherited.size, 1, dtype=torch.float64)
    found = pull_back(last, first, adjoint, Gradient(torch.zeros_like(adjoint), direct), range(N))

    def slope(layer: Tensor) -> Tensor:
        """`<dF/d(own), adjoint>` with both layers at one value."""

        def risk(weight: Tensor, bias: Tensor) -> Tensor:
            hidden = torch.tanh(torch.tanh(x @ layer.T) @ layer.T)
            return (hidden @ weight.T + bias - y).square().mean()

        rows = torch.func.grad(risk, argnums=(0, 1))(model.head.weight.detach(), model.head.bias.detach())
        return torch.cat([row.reshape(-1) for row in rows]) @ adjoint[:, 0]

    coupling = torch.func.grad(slope)(previous.layer.weight.detach()).reshape(-1)
    expected = direct[:9, 0] + direct[9:, 0] - coupling
    by_name = first.trained.unflatten(found.trained[:, 0])
    torch.testing.assert_close(by_name["layer.weight"].reshape(-1), expected, rtol=1e-10, atol=1e-13)
    assert not by_name["head.weight"].any()
    assert not by_name["head.bias"].any()


def test_forward_mode_is_taken_where_the_reverse_product_fails(monkeypatch: pytest.MonkeyPatch):
    bound, called = linked(MLP, "0"), []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(mixed, name)
        return lambda *arguments: (called.append(name), original(*arguments))[1]

    def fails(*arguments: Any) -> Any:
        raise DifferentiationError("no second backward")

    monkeypatch.setattr(mixed, "_forward", counted("_forward"))
    ones = torch.ones(15, 1, dtype=torch.float64)
    expected = mixed_product(bound.risk, range(N), ones)
    assert called == []
    monkeypatch.setattr(mixed, "_reverse", fails)
    torch.testing.assert_close(mixed_product(bound.risk, range(N), ones), expected)
    assert called == ["_forward"]
    with pytest.raises(DifferentiationError, match="no second backward"):  # it has no forward mode either
        mixed_product(linked(BACKWARDS, "last").risk, range(N), torch.ones(16, 1, dtype=torch.float64))
