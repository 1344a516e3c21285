"""What is read off an optimiser for `EarlyStopping`; a stage traced so before one that is differentiated exactly."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stagetrace import (
    Chain,
    Direct,
    Frozen,
    GaussNewton,
    Proximal,
    Query,
    Recording,
    Stage,
    Trace,
    Unrolled,
    trace,
)
from stagetrace.errors import ConvergenceWarning, DescriptionError, ResultsError, StagetraceWarning
from stagetrace.objectives import Classification, Regression
from stagetrace.replay import stopped_early
from stagetrace.solvers import EarlyStopping
from tests.replay.runs import Net, data_of

Optimizer = Callable[[Any], torch.optim.Optimizer]
Adam, AdamW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
DATA: Any = data_of(12, 2, seed=0)


def trained(
    make: Optimizer, folder: Path | None = None, *, schedule: bool = False
) -> tuple[Net, torch.optim.Optimizer]:
    """A network after six steps, and its optimiser."""
    torch.manual_seed(0)
    model = Net(2, dropout=0.0).double()
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=6) if schedule else None
    loader = DataLoader(DATA, 6)
    recording = None if folder is None else Recording(folder, model, optimizer)
    with recording or nullcontext():
        for _ in range(3):
            for x, y in loader if recording is None else recording.loader(loader):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
    return model.eval(), optimizer


def bound(model: nn.Module, **settings: Any) -> Any:
    return Chain(Stage("only", model=model, objective=Classification(), data=DATA, **settings))["only"]


def split(cls: Any, **settings: Any) -> Optimizer:
    """Two groups: the head at half the rate."""
    return lambda model: cls(
        [{"params": model.head.parameters(), "lr": 0.005}, {"params": model.body.parameters()}], lr=0.01, **settings
    )


def moments(model: nn.Module, optimizer: torch.optim.Optimizer, slot: str = "exp_avg_sq") -> Tensor:
    return torch.cat([optimizer.state[p][slot].reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("cls", [Adam, AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_s_metric_from_wherever_it_is_kept(cls: Any, amsgrad: bool, tmp_path: Path) -> None:
    make = partial(cls, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, amsgrad=amsgrad)
    model, optimizer = trained(lambda model: make(model.parameters()), tmp_path)
    slot = "max_exp_avg_sq" if amsgrad else "exp_avg_sq"
    D = (moments(model, optimizer, slot) / (1 - 0.95**6)).sqrt() + 1e-3
    _, named = trained(lambda model: make(model.named_parameters()))
    coupled = 0.0 if cls is AdamW else 0.1
    for training in (optimizer, optimizer.state_dict(), named.state_dict(), tmp_path, str(tmp_path), [tmp_path]):
        early = stopped_early(bound(model, weight_decay=coupled), training, rtol=1e-5, max_steps=70)
        assert early.time == pytest.approx(0.06)
        assert early.decay == (0.1 if cls is AdamW else 0.0)
        assert (early.rtol, early.max_steps) == (1e-5, 70)
        assert early.metric is not None
        torch.testing.assert_close(early.metric, D, rtol=1e-12, atol=0)


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_a_penalty_that_only_the_optimiser_knows_is_said(cls: Any, tmp_path: Path) -> None:
    model, optimizer = trained(lambda model: cls(model.parameters(), lr=0.01, weight_decay=0.1), tmp_path)
    for training, rates in ((optimizer, [0.01] * 6), (optimizer.state_dict(), [0.01] * 6), (tmp_path, None)):
        with pytest.warns(
            StagetraceWarning, match=r"weight_decay=0\.1 times .* has 0, .*give Stage\(.*weight_decay=0\.1"
        ):
            stopped_early(bound(model), training, rates)
        stopped_early(bound(model, weight_decay=0.1), training, rates)  # no warning


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([0.01] * 7, r"7 rates were given, but the optimiser counted 6 steps"),
        ([], r"numbers of at least 0, got none"),
        ([0.01, "a"], r"numbers of at least 0, got 'a' among them"),
        ([0.01, None], r"got None among them"),
        ([0.01, float("nan")], r"got nan among them"),
        ([0.01, -0.01], r"got -0\.01 among them"),
        ("0.01", r"must be a list, .* got a str"),
        (torch.full((6,), 0.01), r"must be a list, .* got a Tensor"),
    ],
)
def test_rates_that_are_none_of_the_steps_are_refused(rates: Any, words: str) -> None:
    model, optimizer = trained(lambda model: Adam(model.parameters(), lr=0.01))
    with pytest.raises(DescriptionError, match=words):
        stopped_early(bound(model), optimizer, rates)


def test_rates_of_fewer_steps_than_were_counted_are_said() -> None:
    """Three epochs of two steps each, and the rates of the epochs."""
    model, optimizer = trained(lambda model: Adam(model.parameters(), lr=0.01))
    with pytest.warns(StagetraceWarning, match="counted 6 steps and 3 rates were given"):
        assert stopped_early(bound(model), optimizer, [0.01] * 3).time == pytest.approx(0.03)


def test_stretches_that_cannot_be_cut_are_said(tmp_path: Path) -> None:
    model, optimizer = trained(lambda model: Adam(model.parameters(), lr=0.01), tmp_path)
    with pytest.raises(DescriptionError, match=r"segments=2 cuts a recording, .* give a list of Checkpoints"):
        stopped_early(bound(model), optimizer, segments=2)
    with pytest.warns(StagetraceWarning, match=r"9 stretches .* states for 3 of about"):  # after 1, 4 and 6 steps
        assert len(stopped_early(bound(model), tmp_path, segments=9).segments) == 3


def test_a_metric_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(DescriptionError, match="got a list; give a tensor"):
        EarlyStopping(1.0, [1.0, 2.0])  # type: ignore[arg-type]


def test_the_rates_of_a_schedule_are_those_recorded_or_given(tmp_path: Path) -> None:
    model, optimizer = trained(lambda model: Adam(model.parameters(), lr=0.01), tmp_path, schedule=True)
    rates = [0.01 * (1 - step / 12) for step in range(6)]
    assert stopped_early(bound(model), tmp_path).time == pytest.approx(sum(rates))
    assert stopped_early(bound(model), optimizer.state_dict(), rates).time == pytest.approx(sum(rates))
    with pytest.raises(DescriptionError, match=r"a scheduler moved its rate; give rates="):
        stopped_early(bound(model), optimizer)
    with pytest.raises(DescriptionError, match="leave rates out"):
        stopped_early(bound(model), tmp_path, rates)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.8}, {"momentum": 0.8, "dampening": 0.5}], ids=str)
def test_sgd_s_time_counts_its_momentum(settings: dict[str, Any], tmp_path: Path) -> None:
    model, optimizer = trained(lambda model: SGD(model.parameters(), lr=0.01, **settings), tmp_path)
    longer = {0: 1.0, 1: 5.0, 2: 2.5}[len(settings)]
    for training, rates in ((optimizer, [0.01] * 6), (optimizer.state_dict(), [0.01] * 6), (tmp_path, None)):
        early = stopped_early(bound(model), training, rates)
        assert (early.time, early.metric, early.decay) == (pytest.approx(0.06 * longer), None, 0.0)
    with pytest.raises(DescriptionError, match=r"it counts no steps; give rates="):
        stopped_early(bound(model), optimizer)


def test_groups_with_rates_of_their_own(tmp_path: Path) -> None:
    """An entry at half the rate moves as one with twice the metric, and shrinks half as much."""
    model, optimizer = trained(split(SGD), tmp_path)
    body = sum(p.numel() for p in model.body.parameters())
    for training, rates in ((optimizer, [0.005] * 6), (tmp_path, None)):
        early = stopped_early(bound(model), training, rates)
        assert early.time == pytest.approx(0.03)
        assert early.metric is not None
        torch.testing.assert_close(early.metric[:body], torch.full((body,), 0.5).double())
        assert (early.metric[body:] == 1).all()
    model, optimizer = trained(split(AdamW, weight_decay=0.2), tmp_path / "adamw")
    early = stopped_early(bound(model), optimizer)
    assert isinstance(early.decay, Tensor)
    assert early.decay.unique().tolist() == pytest.approx([0.2, 0.4])
    assert early.decay[0] == pytest.approx(0.4)
    with pytest.raises(DescriptionError, match=r"2 groups and no names.*give the optimiser itself"):
        stopped_early(bound(model), optimizer.state_dict())


def test_what_had_no_gradient_never_moved(tmp_path: Path) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.rows(x)

    model, data = Rows().double(), [(torch.tensor(0), torch.tensor(1)), (torch.tensor(2), torch.tensor(0))]
    optimizer = Adam(model.parameters(), lr=0.1)
    for x, y in data:
        F.cross_entropy(model(x).unsqueeze(0), y.unsqueeze(0)).backward()
        optimizer.step()
    chain = Chain(Stage("only", model=model, objective=Classification(), data=data))
    metric = stopped_early(chain["only"], optimizer).metric
    assert metric is not None
    assert metric.isinf().tolist() == [False, False, True, True, False, False, True, True]
    result = trace(chain, Query(data), solver=stopped_early(chain["only"], optimizer), out=tmp_path / "run")
    assert result["only"].values.isfinite().all()
    assert str(result.solutions["only"].system) == "x = D^-1/2 phi_t(D^-1/2 G D^-1/2) D^-1/2 b, t = 0.2"
    again = trace(chain, Query(data), solver=stopped_early(chain["only"], optimizer), out=tmp_path / "run")
    assert torch.equal(again["only"].values, result["only"].values)
    other = replace(stopped_early(chain["only"], optimizer), metric=2 * metric)
    with pytest.raises(ResultsError, match="metric"):  # a run with another metric is another run
        trace(chain, Query(data), solver=other, out=tmp_path / "run")


def test_one_cut_off_warns_with_what_to_raise() -> None:
    model, optimizer = trained(lambda model: SGD(model.parameters(), lr=0.1))
    early = stopped_early(bound(model), optimizer, [0.1] * 600, max_steps=2)
    with pytest.warns(ConvergenceWarning, match=r"stopped at the step limit.*; raise max_steps, or loosen rtol"):
        trace(Chain(Stage("only", model=model, objective=Classification(), data=DATA)), Query(DATA), solver=early)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01), "known of Adam, AdamW and SGD"),
        (lambda model: torch.optim.NAdam(model.parameters(), lr=0.01), "known of Adam, AdamW and SGD"),
        (lambda model: SGD(model.parameters(), lr=0.01, maximize=True), "maximize=True"),
        (lambda model: SGD(model.parameters(), lr=0.0), "add up to 0"),
        (lambda model: SGD(model.body.parameters(), lr=0.01), "did not train 'head.weight', 'head.bias'"),
    ],
)
def test_trainings_that_are_refused(make: Optimizer, words: str) -> None:
    model, optimizer = trained(make)
    with pytest.raises(DescriptionError, match=words):
        stopped_early(bound(model), optimizer, [optimizer.param_groups[0]["lr"]] * 6)


def test_a_saved_state_may_hold_parameters_that_were_kept() -> None:
    """The whole model was handed over, and its body had no gradient: what has a state is what was trained."""
    model = Net(2, dropout=0.0).double()
    model.body.requires_grad_(False)
    optimizer = Adam(model.parameters(), lr=0.01)
    for x, y in DATA[:3]:
        optimizer.zero_grad()
        F.cross_entropy(model(x[None]), y[None]).backward()
        optimizer.step()
    early = stopped_early(bound(model), optimizer.state_dict())
    expected = stopped_early(bound(model), optimizer)
    assert early.metric is not None
    assert expected.metric is not None
    assert torch.equal(early.metric, expected.metric)
    assert (early.time, early.metric.numel()) == (pytest.approx(0.03), 12)


def test_states_of_other_models_are_refused() -> None:
    model, optimizer = trained(lambda model: Adam(model.parameters(), lr=0.01))
    other = Net(3, dropout=0.0).double()
    with pytest.raises(DescriptionError, match=r"of a copy; give optimizer.state_dict\(\) instead"):
        stopped_early(bound(other), optimizer)
    with pytest.raises(DescriptionError, match=r"parameter 'head.weight' has the shape \[2, 5\] .* \[3, 5\]"):
        stopped_early(bound(other), optimizer.state_dict())
    with pytest.raises(DescriptionError, match=r"must be a torch optimiser, its state_dict\(\) or a recording"):
        stopped_early(bound(model), {"state": {}})


def test_a_stage_that_was_trained_further_and_another_one_s_metric_are_refused() -> None:
    model, optimizer = trained(lambda model: Adam(model.parameters(), lr=0.01))
    first = Stage("first", model=model, objective=Classification(), data=DATA)
    later, _ = trained(lambda model: Adam(model.parameters(), lr=0.01))
    moved = Stage("second", model=later, objective=Classification(), data=DATA, link=Proximal("body", alpha=0.1))
    early = stopped_early(Chain(first)["first"], optimizer)
    with pytest.raises(DescriptionError, match=r"'second': EarlyStopping says .*'body.0.bias'.*Unrolled"):
        trace(Chain(first, moved), Query(DATA), solver={"second": early})
    kept, _ = trained(lambda model: Adam(model.parameters(), lr=0.01))
    frozen = Stage("second", model=kept, objective=Classification(), data=DATA, link=Frozen("body"))
    with pytest.raises(DescriptionError, match=r"'second': EarlyStopping\(metric=...\) has 37 entries, .* trained 12"):
        trace(Chain(first, frozen), Query(DATA), solver=early)


# Before a stage that is differentiated through its steps


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 2).double(), nn.Linear(2, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y = normal(10, 3, seed=1), normal(10, 2, seed=2)
LATER: Any = list(zip(normal(8, 3, seed=3), torch.arange(8) % 3, strict=True))
ASKED = list(zip(normal(5, 3, seed=4), torch.arange(5) % 3, strict=True))


def at_minimum() -> Line:
    model = Line()
    found = torch.linalg.lstsq(torch.cat([X, torch.ones(10, 1).double()], dim=1), Y).solution
    with torch.no_grad():
        model.body.weight.copy_(found[:3].T)
        model.body.bias.copy_(found[3])
    return model


def anywhere() -> Line:
    torch.manual_seed(3)
    return Line()


Start = Callable[[], Line]


def pretrained(weights: Tensor, start: Start, steps: int, momentum: float) -> tuple[Line, torch.optim.Optimizer]:
    """Whole batches for a time of 1.5 in so many steps."""
    model = start()
    optimizer = SGD(model.parameters(), lr=1.5 * (1 - momentum) / steps, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        (weights * ((model(X) - Y) ** 2).mean(dim=1)).mean().backward()
        optimizer.step()
    return model, optimizer


def finetuned(before: Line, folder: Path | None = None) -> Headed:
    torch.manual_seed(5)
    model = Headed()
    model.body.load_state_dict(before.body.state_dict())
    optimizer = Adam(model.parameters(), lr=0.02)
    loader = DataLoader(LATER, 4)
    recording = None if folder is None else Recording(folder, model, optimizer)
    with recording or nullcontext():
        for _ in range(5):
            for x, y in loader if recording is None else recording.loader(loader):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    return model


def slopes(examples: range, *training: Any) -> Tensor:
    """`n d loss / d weight` of some pretraining examples, by central differences of both trainings."""

    def loss(example: int, move: float) -> float:
        weights = torch.ones(10, dtype=torch.float64)
        weights[example] += move
        model = finetuned(pretrained(weights, *training)[0])
        x, y = (torch.stack(each) for each in zip(*ASKED, strict=True))
        return float(F.cross_entropy(model(x), y).detach())

    h = 1e-3
    found = [10 * (loss(example, h) - loss(example, -h)) / (2 * h) for example in examples]
    return torch.tensor(found, dtype=torch.float64)


def hybrid(folder: Path, start: Start, steps: int, momentum: float) -> tuple[Trace, Trace]:
    """With early stopping, and with the plain inverse in its place."""
    model, optimizer = pretrained(torch.ones(10).double(), start, steps, momentum)
    first = Stage("first", model=model, objective=Regression(), data=list(zip(X, Y, strict=True)))
    second = Stage(
        "second",
        model=finetuned(model, folder),
        objective=Classification(),
        data=LATER,
        link=Unrolled("body", folder),
    )
    chain = Chain(first, second)
    rates = [group["lr"] for group in optimizer.param_groups] * steps
    early = stopped_early(chain["first"], optimizer, rates, rtol=1e-10)
    exact, query = {"first": GaussNewton()}, Query(ASKED)
    result = trace(chain, query, curvature=exact, solver={"first": early}, out=folder / "run")
    return result, trace(chain, query, curvature=exact, solver={"first": Direct()})


def off(scores: Tensor, truth: Tensor) -> float:
    return float((scores - truth).norm() / truth.norm())


@pytest.mark.parametrize("momentum", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_before_a_recorded_stage_it_is_the_slope_of_both_trainings(momentum: float, tmp_path: Path) -> None:
    """From the minimum on the flow is exact, so that what is left is the error of steps of a finite rate, its order."""
    errors, some = list[float](), range(0, 10, 3)
    for steps in (100, 200):
        folder = tmp_path / str(steps)
        result, inverse = hybrid(folder, at_minimum, steps, momentum)
        truth = slopes(some, at_minimum, steps, momentum)
        errors.append(off(result["first"].values[some], truth))
        assert off(inverse["first"].values[some], truth) > 1
        solution = result.solutions["first"]
        assert Trace.load(folder / "run").solutions["first"].system == solution.system
        assert str(solution.system) == "x = phi_t(H) b, t = 1.5"
    assert errors[1] < 0.01
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)


def test_from_elsewhere_the_gradients_at_the_end_stand_for_those_on_the_way(tmp_path: Path) -> None:
    result, inverse = hybrid(tmp_path, anywhere, 100, 0.0)
    truth = slopes(range(10), anywhere, 100, 0.0)
    scores = result["first"].values
    assert off(scores, truth) < 0.2
    assert torch.corrcoef(torch.stack([scores, truth]))[0, 1] > 0.99
    assert off(inverse["first"].values, truth) > 1
