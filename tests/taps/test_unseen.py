"""Examples that use layers in ways which a probe of others does not show: no score of theirs may be silently wrong."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import DifferentiationError
from stagetrace.stages.gradient import trained_gradient
from stagetrace.stages.risk import Risk
from stagetrace.taps import Contraction, gradient_rows, tap, uncovered
from stagetrace.taps.inside import UnseenError, constant_inside
from tests.taps.test_contraction import risk_with

N, RARE = 60, 7


class Model(nn.Module):
    """Two layers, and something that is done to examples whose first feature is above 1 alone."""

    def __init__(self, rare: Callable[["Model", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self._rare = nn.Linear(6, 6), nn.Linear(6, 3), rare
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self._rare(self, x, x[:, 0] > 1)))


def weight_by_hand(model: Model, x: Tensor, rare: Tensor) -> Tensor:
    return model.first(x) + rare.to(x.dtype).unsqueeze(1) * F.linear(x.flip(1), model.first.weight)


def forward_by_hand(model: Model, x: Tensor, rare: Tensor) -> Tensor:
    return torch.where(rare.unsqueeze(1), model.first.forward(x).sin(), model.first(x))


def some_rows_again(model: Model, x: Tensor, rare: Tensor) -> Tensor:
    hidden = model.first(x)
    if bool(rare.any()):
        hidden = hidden.index_put((rare,), model.first(x[rare].flip(1)))
    return hidden


def sorted_first(model: Model, x: Tensor, rare: Tensor) -> Tensor:
    order = torch.argsort(rare.long(), stable=True)
    return model.first(x[order])[torch.argsort(order)]


def risk_of(rare: Callable[[Model, Tensor, Tensor], Tensor]) -> Risk:
    x = torch.randn(N, 6, generator=torch.Generator().manual_seed(1)).double().clamp(max=0.9)
    x[RARE, 0] = 1.5
    return risk_with(lambda: Model(rare), x)


@pytest.mark.parametrize("rare", [weight_by_hand, forward_by_hand, some_rows_again])
def test_a_batch_with_other_uses_is_scored_one_by_one(rare: Callable[[Model, Tensor, Tensor], Tensor]) -> None:
    risk = risk_of(rare)
    tapped = tap(risk)
    assert uncovered(tapped) is None  # the probe does not show it
    expected = torch.stack([trained_gradient(risk, single)[1] for single in risk.read([[i] for i in range(N)])])
    vectors = torch.randn(risk.trained.size, 4, generator=torch.Generator().manual_seed(3)).double()
    contract = Contraction(tapped, vectors)
    for batch in risk.read([range(20), range(20, N)]):
        here = expected[batch.indices]
        losses, dots = contract(batch)
        torch.testing.assert_close(dots, here @ vectors, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(gradient_rows(tapped, batch)[1], here, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(losses, risk.losses(risk.trained_values, risk.inherited_values, batch).detach())
    assert all(parameter.requires_grad for parameter in risk.evaluation.model.parameters())


def test_a_batch_whose_examples_change_places_is_refused() -> None:
    risk = risk_of(sorted_first)
    tapped, batch = tap(risk), next(iter(risk.read([range(N)])))
    assert uncovered(tapped) is None
    with pytest.raises(DifferentiationError, match="give the data a batch_size of 1"):
        gradient_rows(tapped, batch)
    with pytest.raises(DifferentiationError, match="layer by layer in a batch of 60, is not that of the example by"):
        Contraction(tapped, torch.randn(risk.trained.size, 4).double())(batch)
    many = torch.cat([1e6 * torch.ones(risk.trained.size, 2), torch.randn(risk.trained.size, 40)], dim=1).double()
    with pytest.raises(DifferentiationError, match="is not that of the example by itself"):  # by combinations of them
        Contraction(tapped, many)(batch)
    single = next(iter(risk.read([[RARE]])))
    torch.testing.assert_close(gradient_rows(tapped, single)[1][0], trained_gradient(risk, single)[1])


def test_the_gradients_alone_say_which_parameter_is_used_elsewhere() -> None:
    risk = risk_of(weight_by_hand)
    record = tap(risk).taps.record(next(iter(risk.read([range(N)]))))
    with pytest.raises(UnseenError, match=r"some examples use 'first\.weight' outside of its layer"):
        record.gradients(torch.ones_like(record.outputs))


def test_parameters_are_put_back_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    weight = layer.weight
    with constant_inside([(layer, ["weight"])]):
        with pytest.raises(RuntimeError):
            layer(torch.ones(3))
        assert layer.weight is weight
        assert not layer(torch.ones(2)).isnan().any()
    assert layer.weight is weight
