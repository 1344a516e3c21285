"""Memory that runs out halves the batch, in every loop that reads batches, and changes no number."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import EKFAC, Chain, Direct, Frozen, GaussNewton, Hessian, Query, Shift, Stage, trace
from stagetrace.curvature import factor as by_example
from stagetrace.curvature.factor import gauss_newton_factor
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.mixed import mixed_product
from stagetrace.curvature.operator import SumOperator
from stagetrace.errors import DataError, DifferentiationError, StagetraceWarning
from stagetrace.objectives import Classification
from stagetrace.stages import per_example
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import each_gradient, mean_gradient
from stagetrace.stages.halves import halvings, is_out_of_memory
from stagetrace.stages.risk import Risk
from tests import jobs

EXAMPLES = 23


class Crowded(nn.Module):
    """A network for which memory holds `most` examples at once, from when it says so."""

    most: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.net = jobs.Net(0)

    def forward(self, x: Tensor) -> Tensor:
        if Crowded.most is not None and len(x) > Crowded.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.net(x)


@pytest.fixture(autouse=True)
def _roomy() -> Iterator[None]:
    yield
    Crowded.most = None


def fitted(batch_size: int = 16) -> BoundStage:
    data = jobs.examples(EXAMPLES, 0)
    stage = Stage("fit", model=Crowded(), objective=Classification(), data=data, batch_size=batch_size)
    return Chain(stage).last


def kept() -> Risk:
    """A second stage's losses, whose embedding the first one left."""
    first, second = Crowded(), Crowded()
    described: dict[str, Any] = {"objective": Classification(), "batch_size": 16}
    link = Frozen("net.embedding")
    stages = (
        Stage("fit", model=first, data=jobs.examples(5, 1), **described),
        Stage("more", model=second, data=jobs.examples(EXAMPLES, 0), link=link, **described),
    )
    return Chain(*stages).last.risk


def vectors(risk: Risk, columns: int = 2) -> Tensor:
    return torch.randn(risk.trained.size, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def multiplied(curvature: Hessian | GaussNewton, bound: BoundStage) -> Tensor:
    operator = curvature.operator(bound)
    assert isinstance(operator, SumOperator)
    assert isinstance(operator.left, MeanCurvature)
    Crowded.most = 5
    return operator @ vectors(bound.risk)


def in_ekfac(bound: BoundStage) -> Tensor:
    operator = EKFAC().operator(bound)
    Crowded.most = 5
    return operator @ vectors(bound.risk)


def short_of(bound: BoundStage) -> Tensor:
    """The product that says how far EK-FAC is from Gauss-Newton."""
    operator = EKFAC().operator(bound)
    assert isinstance(operator, SumOperator)
    exact = operator.left.approximates
    assert exact is not None
    Crowded.most = 5
    return exact @ vectors(bound.risk)


def coupled(risk: Risk) -> Tensor:
    Crowded.most = 5
    return mixed_product(risk, range(EXAMPLES), vectors(risk))


def slope(risk: Risk) -> Tensor:
    Crowded.most = 5
    return mean_gradient(risk).trained


LOOPS: dict[str, Callable[[], tuple[Tensor, Risk]]] = {
    "the gradient": lambda: (slope(risk := fitted().risk), risk),
    "the coupling": lambda: (coupled(risk := kept()), risk),
    "a product with the curvature": lambda: (multiplied(Hessian(), bound := fitted()), bound.risk),
    "a product with the curvature, of Gauss-Newton": lambda: (multiplied(GaussNewton(), b := fitted()), b.risk),
    "the fit of EKFAC": lambda: (in_ekfac(bound := fitted()), bound.risk),
    "a product with the Gauss-Newton matrix": lambda: (short_of(bound := fitted()), bound.risk),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_halves_give_what_the_whole_batch_gives(loop: str, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:  # enough memory all the time
        patch.setattr(Crowded, "forward", lambda self, x: self.net(x))
        wanted, _ = LOOPS[loop]()
        Crowded.most = None
    what = loop.partition(",")[0]
    with pytest.warns(StagetraceWarning, match=f"memory ran out for .* at once, for {what}") as said:
        found, risk = LOOPS[loop]()
    assert len([each for each in said if "memory ran out" in str(each.message)]) == 1
    assert 3 <= risk.examples.held[what] <= 5
    assert halvings(risk.examples) == [
        f"{risk.where}: memory ran out, so that {what} took {risk.examples.held[what]} examples at once"
    ]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_single_gradients_and_rows_are_made_of_halves_too(monkeypatch: pytest.MonkeyPatch):
    """These go through the model one by one, batched: the batch is refused where it is taken apart."""
    risk = fitted().risk
    monkeypatch.setattr(by_example, "_tapped", lambda risk: None)

    def rows() -> Tensor:
        factor = gauss_newton_factor(risk, range(EXAMPLES), range(EXAMPLES), 1.0)
        assert not isinstance(factor, str)
        found = factor.rows(torch.ones(risk.trained.size).double(), 0.0, 1.0, 2**20)
        assert found is not None
        return found.matrix

    wanted = each_gradient(risk).trained, rows().mT @ rows()
    vmap = per_example.vmap

    def crowded(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        def inside(*arguments: Any) -> Any:
            content = next(each for each in arguments if isinstance(each, tuple | list))
            if len(content[0]) > 12:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return vmap(function, **settings)(*arguments)

        return inside

    monkeypatch.setattr(per_example, "vmap", crowded)
    with pytest.warns(StagetraceWarning, match="memory ran out"):
        found = each_gradient(risk).trained, rows().mT @ rows()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)
    assert set(risk.examples.held) == {"single gradients", "rows of the Gauss-Newton matrix"}


def test_a_trace_goes_on_and_says_so_once():
    query = Query(jobs.examples(3, 5))
    wanted = trace(Chain(fitted().stage), query, curvature=GaussNewton(), solver=Direct(0.1, Shift))
    chain = Chain(fitted().stage)
    Crowded.most = 9
    with pytest.warns(StagetraceWarning, match="memory ran out") as said:
        found = trace(chain, query, curvature=GaussNewton(), solver=Direct(0.1, Shift))
    torch.testing.assert_close(found["fit"].values, wanted["fit"].values, rtol=1e-10, atol=1e-13)
    words = [str(each.message).partition(" at once, for ")[2].partition(";")[0] for each in said]
    assert words == ["the checks", "a product with the curvature", "scoring"]
    notices = found.statistics["notices"]
    assert isinstance(notices, list)
    assert len(notices) == 3


def test_one_example_that_does_not_fit_is_refused():
    risk = fitted().risk
    mean_gradient(risk)
    Crowded.most = 0
    with (
        pytest.warns(StagetraceWarning),
        pytest.raises(DataError, match="stage 'fit': memory ran out for one example alone, for the gradient"),
    ):
        mean_gradient(risk)


def test_what_is_an_end_of_memory():
    wrapped = DifferentiationError("the gradient cannot be taken")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert is_out_of_memory(wrapped)
    assert is_out_of_memory(
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't "
            "allocate memory: you tried to allocate 8000000000000 bytes"
        )
    )
    assert not is_out_of_memory(RuntimeError("shapes differ"))
