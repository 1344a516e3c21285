"""Per-example gradients from taps against plain autograd, for every way in which layers are used."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from stagetrace import Stage
from stagetrace.errors import DifferentiationError
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.risk import Risk
from stagetrace.taps.find import Tapped, tap
from stagetrace.taps.rest import Rest
from tests.curvature.specimens import SPECIMENS, Specimen

N = 5


class Plain:
    """The model's outputs as they are; the loss does not matter."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return outputs.reshape(len(outputs), -1).square().sum(dim=1)


class Of(nn.Module):
    """A module made of others and a function of them and of the input."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Experts(nn.Module):
    """Every token goes to one of three experts, all tokens of a batch in one list; the third is called by few."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 4)
        chosen = (flat[:, 0] > 0).long() + (flat[:, 1] > 1.5).long()
        found = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            found = found.index_add(0, (chosen == number).nonzero()[:, 0], expert(flat[chosen == number]))
        return self.head(found.reshape(x.shape).tanh().mean(dim=1))


def twice(m: Any, x: Tensor) -> Tensor:
    return m.head(m.shared(m.shared(x).tanh()).tanh())


def tied_model() -> nn.Module:
    table, head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    head.weight = table.weight
    return Of(tied, table=table, between=nn.Linear(4, 4), head=head)


def tied(m: Any, x: Tensor) -> Tensor:
    return m.head(m.between(m.table(x)).tanh())


def tied_functionally(m: Any, x: Tensor) -> Tensor:
    return F.linear(m.between(m.table(x)).tanh(), m.table.weight)


def in_place(m: Any, x: Tensor) -> Tensor:
    h = F.relu(m.first(x), inplace=True)
    h = m.second(h)
    h += x
    return m.head(h.mul_(2.0).sigmoid_())


def positions_of_one(m: Any, x: Tensor) -> Tensor:
    at = torch.arange(x.shape[1]).unsqueeze(0)
    return m.head((m.table(x) + m.places(at)).tanh())


def positions_of_none(m: Any, x: Tensor) -> Tensor:
    return m.head((m.table(x) + m.places(torch.arange(x.shape[1]))).tanh())


def time_first(m: Any, x: Tensor) -> Tensor:
    return m.head(m.first(x.transpose(0, 1)).tanh().transpose(0, 1)).sum(dim=1)


def one_list(m: Any, x: Tensor) -> Tensor:
    return m.head(m.norm(m.first(x.reshape(-1, x.shape[-1]))).tanh().reshape(len(x), -1, 4).sum(dim=1))


def mixed(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    return m.head(h.mean(dim=0) + 0 * h)  # examples mix: no gradient of their own


def linear(*sizes: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(*sizes, bias=bias)


def convolutions(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(2, 3, 3, **settings), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))


PICTURES, ROWS, SEQUENCES, TOKENS, WAVES = (2, 7, 6), (4,), (3, 4), "tokens", (2, 9)
CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "convolution": (convolutions(), PICTURES),
    "stride": (convolutions(stride=(2, 1)), PICTURES),
    "padding": (convolutions(padding=(1, 2)), PICTURES),
    "same": (convolutions(padding="same"), PICTURES),
    "reflected": (convolutions(padding=1, padding_mode="reflect"), PICTURES),
    "dilation": (convolutions(dilation=2, padding=1, stride=2), PICTURES),
    "without bias": (convolutions(bias=False), PICTURES),
    "groups": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.LazyLinear(2)), PICTURES),
    "in one dimension": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2), nn.Flatten(), nn.LazyLinear(2)),
        WAVES,
    ),
    "twice": (lambda: Of(twice, shared=linear(4, 4), head=linear(4, 2)), ROWS),
    "tied table": (tied_model, TOKENS),
    "tied by a function": (lambda: Of(tied_functionally, table=nn.Embedding(6, 4), between=linear(4, 4)), TOKENS),
    "padding of a table": (
        lambda: nn.Sequential(nn.Embedding(6, 4, padding_idx=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)),
        TOKENS,
    ),
    "bag": (lambda: nn.Sequential(nn.EmbeddingBag(6, 4), nn.Tanh(), nn.Linear(4, 2)), TOKENS),
    "in place": (lambda: Of(in_place, first=linear(4, 4), second=linear(4, 4), head=linear(4, 2)), ROWS),
    "positions for all": (
        lambda: Of(positions_of_one, table=nn.Embedding(6, 4), places=nn.Embedding(5, 4), head=linear(4, 2)),
        TOKENS,
    ),
    "positions without examples": (
        lambda: Of(positions_of_none, table=nn.Embedding(6, 4), places=nn.Embedding(5, 4), head=linear(4, 2)),
        TOKENS,
    ),
    "time first": (lambda: Of(time_first, first=linear(4, 4), head=linear(4, 2)), SEQUENCES),
    "one list": (lambda: Of(one_list, first=linear(4, 4), norm=nn.LayerNorm(4), head=linear(4, 2)), SEQUENCES),
    "experts": (Experts, SEQUENCES),
    "scales": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.PReLU(4), nn.Linear(4, 2)), ROWS),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2)),
        ROWS,
    ),
}
LEFT_TO_AUTOGRAD = {"tied by a function", "weight norm"}


def risk_of(make: Callable[[], nn.Module], inputs: Any, dtype: torch.dtype = torch.float64) -> Risk:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        x = torch.randint(0, 6, (N, 5)) if inputs == TOKENS else torch.randn(N, *inputs)
        model = make()
        model(x)  # shapes of lazy layers
    stage = Stage("only", model=model.to(dtype), objective=Plain(), data=TensorDataset(x))
    return BoundStage.of(stage, None).risk


def gradients(tapped: Tapped) -> tuple[Tensor, Tensor]:
    """Each example's gradient along a direction of its outputs, from the taps and by autograd alone: `[N, P]`."""
    risk = tapped.risk
    batch = next(iter(risk.read([range(N)])))
    record = tapped.taps.record(batch)
    along = torch.randn(record.outputs.shape, generator=torch.Generator().manual_seed(5)).to(record.outputs)
    found = risk.trained.zeros(N)
    for group, sums in zip(tapped.tapped, tapped.sums(record), strict=True):
        parts = [each for _, each in sums.matrices(record.gradients(along))]
        group.layout.scatter(torch.cat(parts).permute(1, 2, 0), found)
    names = [name for group in tapped.rest for name in group.names]
    if names:
        rest = torch.cat([part[0] for part in Rest(risk, names).gradients(batch, along.unsqueeze(0))])
        where, start = risk.trained.slices(), 0
        for name in names:
            size = where[name].stop - where[name].start
            found[where[name]], start = rest[:, start : start + size].mT, start + size
    rows = []
    for place in range(N):
        values = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
        outputs = risk.outputs(values, {}, next(iter(risk.read([[place]]))))
        slopes = torch.autograd.grad(outputs, list(values.values()), along[[place]], materialize_grads=True)
        rows.append(risk.trained.flatten(dict(zip(values, slopes, strict=True))))
    return found.mT, torch.stack(rows)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_autograd(case: str) -> None:
    tapped = tap(risk_of(*CASES[case]))
    found, expected = gradients(tapped)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert bool(tapped.rest) == (case in LEFT_TO_AUTOGRAD), [group.why for group in tapped.rest]
    assert sorted(name for group in tapped.groups for name in group.names) == sorted(tapped.risk.trained.names)


@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda specimen: specimen.name)
def test_gradients_of_the_specimens(specimen: Specimen) -> None:
    found, expected = gradients(tap(specimen.risk()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_what_a_tap_does_not_see_is_said() -> None:
    (group,) = tap(risk_of(*CASES["tied by a function"])).rest
    assert group.names == ("table.weight",)
    assert "used outside table" in group.why


def test_examples_that_mix_are_refused_by_name() -> None:
    tapped = tap(risk_of(lambda: Of(mixed, first=linear(4, 4), head=linear(4, 2)), ROWS))
    assert {name for group in tapped.rest for name in group.names} >= {"first.weight", "first.bias"}


def test_rows_of_several_examples_are_no_one_s() -> None:
    risk = risk_of(*CASES["one list"])
    tapped = tap(risk)
    record = tapped.taps.record(next(iter(risk.read([range(N)]))))
    record.outputs = record.outputs + record.outputs.roll(1, dims=0)  # an example's output is its neighbour's too
    with pytest.raises(DifferentiationError, match=r"'first' depends on several examples"):
        record.owners()


def test_a_model_in_half_precision_is_summed_in_single() -> None:
    tapped = tap(risk_of(*CASES["tied table"], dtype=torch.bfloat16))
    batch = next(iter(tapped.risk.read([range(N)])))
    record = tapped.taps.record(batch)
    along = torch.randn(record.outputs.shape, generator=torch.Generator().manual_seed(5)).to(record.outputs)
    for sums in tapped.sums(record):
        assert all(each.dtype == torch.float32 for _, each in sums.matrices(record.gradients(along)))
    assert not tapped.rest


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # where the test calls it
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_in_a_block_that_is_computed_anew_is_tapped_once(reentrant: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(checkpoint(lambda h: m.second(m.first(h).tanh()), x, use_reentrant=reentrant).tanh())

    risk = risk_of(lambda: Of(forward, first=linear(4, 4), second=linear(4, 4), head=linear(4, 2)), ROWS)
    tapped = tap(risk)
    assert not tapped.rest
    record = tapped.taps.record(next(iter(risk.read([range(N)]))))
    _ = record.gradients(torch.ones_like(record.outputs))
    assert {place: len(calls) for place, calls in record.calls.items()} == {"first": 1, "second": 1, "head": 1}


def test_the_model_is_left_as_it_was() -> None:
    risk = risk_of(*CASES["twice"])
    tapped = tap(risk)
    gradients(tapped)
    assert not any(module._forward_hooks for module in risk.evaluation.model.modules())
    assert all(p.grad is None for p in risk.evaluation.model.parameters())
