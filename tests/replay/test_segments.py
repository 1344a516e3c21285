"""`EarlyStopping` in several segments: against dense matrix exponentials, and descent that is really run again."""

import json
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stagetrace import Chain, Frozen, GaussNewton, Hessian, Lanczos, Proximal, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DescriptionError, StagetraceWarning
from stagetrace.objectives import Classification, Regression
from stagetrace.replay import Checkpoint, stopped_early
from stagetrace.solvers import EarlyStopping, solve
from stagetrace.solvers.early_stopping import Segment
from stagetrace.solvers.system import Equation, FlowSegments
from tests.replay.runs import data_of
from tests.replay.test_stopped import ASKED, LATER, Line, X, Y, anywhere, at_minimum, finetuned, off, trained

DATA: Any = list(zip(X, Y, strict=True))
Adam, AdamW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
TIMES = (0.4, 0.7, 0.4)


def metrics(infinite: bool = False) -> list[Tensor]:
    found = [torch.rand(8, generator=torch.Generator().manual_seed(seed)).double() + 0.5 for seed in range(3)]
    for each in found if infinite else ():
        each[2] = torch.inf
    return found


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def in_stretches(model: Line, *, infinite: bool = False, decay: float = 0.0) -> EarlyStopping:
    """Three stretches, each with a metric of its own, the whole time at the model's own values."""
    *before, last = zip(TIMES, metrics(infinite), strict=True)
    earlier = tuple(Segment(time, flat(model), D, decay) for time, D in before)
    return EarlyStopping(*last, decay, rtol=1e-12, earlier=earlier)


def first(model: nn.Module, **settings: Any) -> Stage:
    return Stage("first", model=model, objective=Regression(), data=DATA, **settings)


@pytest.mark.parametrize("infinite", [False, True], ids=["moved", "some never moved"])
@pytest.mark.parametrize("decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_is_the_chain_of_dense_exponentials(infinite: bool, decay: float) -> None:
    """`exp(-t C)' v` and `int_0^t exp(-s C)' v ds`, `C = D^-1 H + decay`, by the exponential of a block matrix."""
    model = anywhere()
    features = torch.cat([X, torch.ones(10, 1).double()], dim=1)
    H = torch.zeros(8, 8).double()  # mean over examples and outputs of the squared error; weights first, then biases
    for out in range(2):
        places = [3 * out, 3 * out + 1, 3 * out + 2, 6 + out]
        H[torch.tensor(places)[:, None], torch.tensor(places)] = features.T @ features / 10
    wrong = model(X).detach() - Y
    each = torch.cat([torch.einsum("no,ni->noi", wrong, X).reshape(10, 6), wrong], dim=1)  # gradients of the losses
    asked = torch.stack([x for x, _ in ASKED])
    targets = torch.zeros(5, 2).double()
    gap = 2 * (model(asked).detach() - targets) / 10
    v = torch.cat([torch.einsum("no,ni->oi", gap, asked).reshape(6), gap.sum(dim=0)])
    truth = torch.zeros(10).double()
    for time, D in reversed(list(zip(TIMES, metrics(infinite), strict=True))):
        moves = torch.diag((~D.isinf()).double() * decay)
        C = (torch.diag(1 / D) @ H + moves).T
        block = torch.zeros(16, 16).double()
        block[:8, :8], block[:8, 8:] = -C, torch.eye(8).double()
        whole = torch.linalg.matrix_exp(time * block)
        truth -= each @ (whole[:8, 8:] @ v / D)
        v = whole[:8, :8] @ v
    query = Query(list(zip(asked, targets, strict=True)))
    early = in_stretches(model, infinite=infinite, decay=decay)
    found = trace(Chain(first(model)), query, curvature=GaussNewton(), solver=early)["first"].values
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


def descended(weights: Tensor, steps: int, model: Line) -> Line:
    """Whole batches, preconditioned by the metric of each stretch, in so many steps a unit of time."""
    for time, D in zip(TIMES, metrics(), strict=True):
        for _ in range(round(time * steps)):
            model.zero_grad()
            (weights * ((model(X) - Y) ** 2).mean(dim=1)).mean().backward()
            shift, moved = 0, D
            with torch.no_grad():
                for p in model.parameters():
                    p -= p.grad / moved[shift : shift + p.numel()].view_as(p) / steps  # pyright: ignore
                    shift += p.numel()
    return model


def test_before_a_recorded_stage_it_is_the_slope_of_both_trainings(tmp_path: Path) -> None:
    """From the minimum on gradients stay, so that what is left is the error of finite steps: extrapolated to none."""

    def loss(steps: int, weights: Tensor) -> float:
        model = finetuned(descended(weights, steps, at_minimum()))
        x, y = (torch.stack(each) for each in zip(*ASKED, strict=True))
        return float(F.cross_entropy(model(x), y).detach())

    def slope(steps: int, example: int, h: float = 1e-3) -> float:
        at = []
        for move in (h, -h):
            weights = torch.ones(10).double()
            weights[example] += move
            at.append(loss(steps, weights))
        return 10 * (at[0] - at[1]) / (2 * h)

    some = (0, 7)
    coarse, fine = (torch.tensor([slope(steps, i) for i in some]).double() for steps in (100, 200))
    model = at_minimum()
    second = Stage(
        "second",
        model=finetuned(model, tmp_path),
        objective=Classification(),
        data=LATER,
        link=Unrolled("body", tmp_path),
    )
    chain, exact = Chain(first(model), second), {"first": GaussNewton()}
    result = trace(chain, Query(ASKED), curvature=exact, solver={"first": in_stretches(model)}, out=tmp_path / "run")
    scores = result["first"].values[list(some)]
    assert off(scores, 2 * fine - coarse) < 2e-4 < off(scores, fine)
    again = trace(chain, Query(ASKED), curvature=exact, solver={"first": in_stretches(model)}, out=tmp_path / "run")
    assert torch.equal(again["first"].values, result["first"].values)
    assert again.solutions["first"].system == result.solutions["first"].system
    assert str(again.solutions["first"].system).endswith("in 3 segments, t = 0.4, 0.7, 0.4")


def run(weights: Tensor, folder: Path | None = None) -> Line:
    """Plain descent from anywhere for a time of 2.4 in 240 steps."""
    model = anywhere()
    optimizer = SGD(model.parameters(), lr=0.01)
    rows: Any = [(x, y, n) for n, (x, y) in enumerate(DATA)] if folder is None else DATA
    loader = DataLoader(rows, 10)
    recording = None if folder is None else Recording(folder, model, optimizer, every=15)
    with recording or nullcontext():
        for _ in range(240):
            for x, y, *index in loader if recording is None else recording.loader(loader):
                optimizer.zero_grad()
                losses = ((model(x) - y) ** 2).mean(dim=1)
                (losses * weights[index[0]] if index else losses).mean().backward()
                optimizer.step()
    return model


def test_more_segments_are_nearer_to_the_steps_that_were_taken(tmp_path: Path) -> None:
    """From anywhere on the examples' gradients change on the way: of L segments the error falls as 1 / L."""
    query = Query([(x, torch.zeros(2).double()) for x, _ in ASKED])

    def loss(example: int, move: float) -> float:
        weights = torch.ones(10).double()
        weights[example] += move
        return float((run(weights)(torch.stack([x for x, _ in ASKED])) ** 2).mean().detach())

    h, some, model = 1e-3, (0, 7), run(torch.ones(10).double(), tmp_path)
    truth = torch.tensor([10 * (loss(i, h) - loss(i, -h)) / (2 * h) for i in some]).double()
    chain, errors = Chain(first(model)), list[float]()
    for segments in (1, 4, 16):
        early = stopped_early(chain["first"], tmp_path, segments=segments, rtol=1e-10)
        assert len(early.earlier) == segments - 1
        assert early.time == pytest.approx(2.4 / segments)
        errors.append(
            off(trace(chain, query, curvature=GaussNewton(), solver=early)["first"].values[list(some)], truth)
        )
    assert errors[0] > 0.1  # which is seen, and falls
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.4 * errors[1] < 0.1


def test_what_was_kept_from_the_stage_before_gets_its_part_from_each_segment() -> None:
    """At a minimum one long segment is as good as three: the same scores, of the stage and of the one before it."""
    model = at_minimum()

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Line()
            self.body.load_state_dict(model.state_dict())
            self.head = nn.Linear(2, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    later = Scaled()
    with torch.no_grad():  # to its minimum
        features = torch.cat([later.body(X), torch.ones(10, 1).double()], dim=1)
        found = torch.linalg.lstsq(features, Y.flip(1)).solution
        later.head.weight.copy_(found[:2].T)
        later.head.bias.copy_(found[2])
    data = list(zip(X, Y.flip(1), strict=True))
    link = Frozen({"body.body": "body"})
    chain = Chain(first(model), Stage("second", model=later, objective=Regression(), data=data, link=link))
    whole = EarlyStopping(3.0, rtol=1e-12)
    parts = EarlyStopping(1.0, rtol=1e-12, earlier=tuple(Segment(1.0, flat(later.head)) for _ in range(2)))
    query, results = Query(data[:4]), list[Any]()
    for early in (whole, parts):
        solvers = {"first": EarlyStopping(2.0, rtol=1e-12), "second": early}
        results.append(trace(chain, query, curvature=GaussNewton(), solver=solvers, parts=True))
    for name in ("first", "second"):
        for what in ("values", "via_shared", "via_head"):
            one, other = (getattr(result[name], what) for result in results)
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


# What is known of a training


def test_checkpoints_have_times_and_metrics_of_their_own() -> None:
    """Six steps of AdamW, looked at after two, four and six."""
    model, kept = anywhere(), list[Checkpoint]()
    optimizer = AdamW(model.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    for step in range(6):
        optimizer.zero_grad()
        ((model(X) - Y) ** 2).mean().backward()
        optimizer.step()
        if step % 2:
            state = {**optimizer.state_dict()}
            state["state"] = {n: {k: v.clone() for k, v in each.items()} for n, each in state["state"].items()}
            kept.append(Checkpoint(state, values={name: p.clone() for name, p in model.state_dict().items()}))
    chain = Chain(first(model))
    by_rates = [replace(each, rates=[0.01, 0.03]) for each in kept]
    for given, time in ((kept, 0.02), (by_rates, 0.04)):
        early = stopped_early(chain["first"], given)
        stretches = [*early.earlier, early]
        assert [each.time for each in stretches] == pytest.approx([time] * 3)
        for step, (each, checkpoint) in enumerate(zip(stretches, kept, strict=True), 1):
            square = torch.cat([one["exp_avg_sq"].reshape(-1) for one in checkpoint.state["state"].values()])  # pyright: ignore
            D = (square / (1 - 0.95 ** (2 * step))).sqrt() + 1e-3
            assert each.metric is not None
            torch.testing.assert_close(each.metric, D, rtol=1e-12, atol=0)
            assert each.decay == 0.1
        for each, checkpoint in zip(early.earlier, kept, strict=False):
            values = torch.cat([value.reshape(-1) for value in checkpoint.values.values()])  # pyright: ignore
            assert torch.equal(each.values, values)
    assert repr(by_rates[0]) == "Checkpoint(2 rates)"
    for wrong, words in (
        ([kept[1], kept[0]], "the last checkpoint is not where the stage's model is"),
        ([], "there is no checkpoint"),
        ([replace(kept[0], values=None), kept[-1]], "a checkpoint before the last has no values"),
        ([kept[0], by_rates[-1]], "some checkpoints have rates and some have not"),
        ([replace(kept[0], values={}), kept[-1]], "has no 'body.weight', 'body.bias' of the stage's shapes"),
        ([kept[0], 3], "a list of Checkpoints or a recording, got list"),
    ):
        with pytest.raises(DescriptionError, match=words):
            stopped_early(chain["first"], wrong)  # pyright: ignore
    with pytest.raises(DescriptionError, match="rates belong to each checkpoint"):
        stopped_early(chain["first"], kept, [0.1])
    for wrong in ({"state": 3}, {"state": {}, "values": 3}):
        with pytest.raises(DescriptionError, match="Checkpoint: "):
            Checkpoint(**wrong)  # pyright: ignore


def test_running_statistics_are_of_one_checkpoint_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double().eval()
    optimizer = SGD(model.parameters(), lr=0.1)
    one = Checkpoint(optimizer, values=model, rates=[0.1])
    chain = Chain(first(model))
    with pytest.raises(DescriptionError, match=r"running statistics .*give the last checkpoint alone"):
        stopped_early(chain["first"], [one, one])
    assert stopped_early(chain["first"], [one]).earlier == ()


def test_an_operator_is_one_curvature_and_not_several() -> None:
    from stagetrace.curvature.operator import IdentityOperator

    early = EarlyStopping(1.0, earlier=(Segment(2.0, torch.zeros(3)),))
    assert str(early) == "EarlyStopping(time=1, after 2, rtol=0.001)"
    with pytest.raises(DescriptionError, match=r"goes from one curvature to the next.*trace\(solver"):
        solve(IdentityOperator(3, torch.float64), torch.ones(3).double(), early)
    with pytest.raises(DescriptionError, match=r"earlier=...\) must be a vector"):
        Segment(1.0, torch.tensor([torch.nan]))


def test_its_equation_is_written_and_read() -> None:
    system = FlowSegments((EarlyStopping(0.5).rule.flow, EarlyStopping(2.0, decay=0.1).rule.flow), "G")
    assert Equation.of(json.loads(json.dumps(system.record()))) == system
    for broken in ({"segments": []}, {"segments": 3}, {"matrix": "I"}):
        with pytest.raises(ValueError, match="no "):
            Equation.of({**system.record(), **broken})


# Where nobody chose


def hybrid(folder: Path, training: Any, **link: Any) -> tuple[Chain, Query]:
    model = at_minimum()
    recorded = Stage(
        "second",
        model=finetuned(model, folder),
        objective=Classification(),
        data=LATER,
        link=Proximal("body", alpha=0.1) if link else Unrolled("body", folder),
    )
    return Chain(first(model, training=training(model)), recorded), Query(ASKED)


def left(model: nn.Module) -> Any:
    return Checkpoint(SGD(model.parameters(), lr=0.1), rates=[0.1] * 20)


def test_before_a_recorded_stage_it_is_chosen_and_said(tmp_path: Path) -> None:
    chain, query = hybrid(tmp_path, lambda model: [left(model)])
    with pytest.warns(StagetraceWarning, match=r"'first': EarlyStopping\(time=2.*was chosen.*Lanczos\(\)"):
        result = trace(chain, query, curvature={"first": GaussNewton()})
    assert str(result.solutions["first"].system) == "x = phi_t(H) b, t = 2"
    checks: Any = result.statistics["checks"]
    assert ("first", "solver") in [(each["where"], each["what"]) for each in checks]
    given = trace(chain, query, curvature={"first": GaussNewton()}, solver={"first": EarlyStopping(2.0)})
    torch.testing.assert_close(result["first"].values, given["first"].values, rtol=1e-9, atol=0)


@pytest.mark.parametrize("case", ["a solver was given", "the next stage is idealised", "nothing is left"])
def test_elsewhere_the_default_stays(case: str, tmp_path: Path) -> None:
    training = (lambda model: None) if case == "nothing is left" else (lambda model: [left(model)])
    chain, query = hybrid(tmp_path, training, **({"link": 1} if case == "the next stage is idealised" else {}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = trace(chain, query, solver=Lanczos() if case == "a solver was given" else None)
    assert not any("was chosen" in str(each.message) for each in said)
    assert "phi_t" not in str(result.solutions["first"].system)


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    other, _ = trained(lambda model: Adam(model.parameters(), lr=0.01))
    chain, query = hybrid(tmp_path, lambda model: [Checkpoint(Adam(other.parameters()).state_dict(), rates=[0.1])])
    with pytest.raises(DescriptionError, match="stage 'first': "):
        trace(chain, query)


# Which curvature


class Curved(nn.Module):
    """A network small enough for dense matrices, with a Hessian that is indefinite."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 3).double(), nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


def test_within_a_stretch_negative_curvature_is_followed_unless_it_would_grow_too_much() -> None:
    """The default takes the Hessian where a stretch is short, Gauss-Newton where it is long; alone always."""
    rows, model = data_of(12, 2, seed=0), Curved()
    chain = Chain(Stage("one", model=model, objective=Classification(), data=rows))
    query, values = Query(data_of(4, 2, seed=1)), flat(model)

    def scores(early: EarlyStopping, **curvature: Any) -> tuple[Tensor, str, tuple[str, ...]]:
        result = trace(chain, query, solver=early, **curvature)
        return result["one"].values, str(result.solutions["one"].system), result.solutions["one"].notes

    short = EarlyStopping(3.0, rtol=1e-10, earlier=(Segment(3.0, values),))
    found, words, notes = scores(short)
    torch.testing.assert_close(found, scores(short, curvature=Hessian())[0], rtol=1e-8, atol=0)
    assert "phi_t(H)" in words
    assert not any("Gauss-Newton" in note for note in notes)
    long = EarlyStopping(400.0, rtol=1e-10, earlier=(Segment(400.0, values),))
    found, words, _ = scores(long)
    torch.testing.assert_close(found, scores(long, curvature=GaussNewton())[0], rtol=1e-8, atol=0)
    assert "phi_t(G)" in words
    mixed = EarlyStopping(3.0, rtol=1e-10, earlier=(Segment(400.0, values),))
    assert "the Gauss-Newton matrix was taken in segment 1, the Hessian in the others" in scores(mixed)[2]
    assert "phi_t(G)" in scores(EarlyStopping(3.0))[1]
