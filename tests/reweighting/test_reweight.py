"""`reweight`: predicted against really retrained changes, what it never does, and data that are known to be wrong."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stagetrace import Chain, Proximal, Query, Recording, Stage, Unrolled, reweight
from stagetrace.errors import DescriptionError, ResultsError, SolveError
from stagetrace.objectives import Classification, Regression
from stagetrace.results.jsonable import read_json
from stagetrace.reweighting import Reweighting
from stagetrace.reweighting.balance import FIRST
from stagetrace.reweighting.repeat import Repeat
from stagetrace.validation import Adam, Steps
from tests.replay.runs import Run, Stages
from tests.reweighting.test_repeat import CASES

LOOP = "stagetrace.reweighting.search"
ROUGH = Stages(tuple(Run(partial(torch.optim.Adam, lr=0.3), epochs=e) for e in (8, 6)), (20, 12))


# By hand


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def test_a_training_worked_out_by_hand(tmp_path: Path):
    """Two steps at the rate 1/4 on (w - 1)^2 and (w - 3)^2, from 0, weighted 1 - d and 1 + d: w ends at
    7/4 + d + d^2 / 4. The query wants 2, so its loss is (d + d^2 / 4 - 1/4)^2, with the slope -1/2 at d = 0."""
    x, model = torch.ones(1).double(), Constant()
    data, optimizer = [(x, x), (x, 3 * x)], torch.optim.SGD(model.parameters(), lr=0.25)
    with Recording(tmp_path, model, optimizer) as recording:
        for inputs, targets in recording.loader(DataLoader(data, batch_size=1)):  # type: ignore[arg-type]
            optimizer.zero_grad()
            ((model(inputs) - targets) ** 2).mean().backward()
            optimizer.step()
    stage = Stage("only", model=model, objective=Regression(), data=data, link=Unrolled(recording=tmp_path))
    found = reweight(Chain(stage), Query([(x, 2 * x)]), steps=1)
    (tried,) = found.history
    d = FIRST
    assert found["only"].tolist() == pytest.approx([1 - d, 1 + d])
    assert tried.length == pytest.approx(d)
    assert tried.predicted == pytest.approx(-d / 2)
    assert tried.true == pytest.approx((d + d**2 / 4 - 1 / 4) ** 2 - 1 / 16)
    assert tried.kept
    assert found.target[0].uniform == pytest.approx(1 / 16)
    assert found.target[0].weighted == pytest.approx((d + d**2 / 4 - 1 / 4) ** 2)


# Any training


@pytest.mark.parametrize("case", CASES)
def test_a_short_step_does_what_was_predicted(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The true change is that of the loop of a user, run again with the weights that came out."""
    stages, chain = CASES[case], CASES[case].chain(tmp_path)
    monkeypatch.setattr(f"{LOOP}.FIRST", 1e-6)
    found = reweight(chain, stages.query("mean"), steps=1)
    (tried,) = found.history
    assert tried.came_true == pytest.approx(1, abs=2e-3)
    weights = {stage: found[name] for stage, name in enumerate(chain.names)}
    after, before = (float(stages.losses(each).mean()) for each in (weights, {}))
    assert after - before == pytest.approx(tried.true, rel=1e-5)


@pytest.mark.slow
def test_several_orders_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"{LOOP}.FIRST", 1e-6)
    stages = CASES["moved"]
    found = reweight(stages.chain(tmp_path), stages.query("mean"), steps=1, orders=(5,))
    (tried,) = found.history
    assert tried.came_true == pytest.approx(1, abs=2e-3)
    recorded, other = found.target
    assert recorded.uniform != pytest.approx(other.uniform, rel=1e-3)
    assert tried.true == pytest.approx((recorded.change + other.change) / 2, rel=1e-5)


@pytest.mark.parametrize(
    "stages", [pytest.param(ROUGH, id="rough", marks=pytest.mark.slow), pytest.param(CASES["moved"], id="moved")]
)
def test_the_loss_never_rises_and_only_the_balance_changes(stages: Stages, tmp_path: Path):
    found = reweight(stages.chain(tmp_path), stages.query("mean"), steps=3)
    assert any(not each.kept for each in found.history) == (stages is ROUGH)
    assert all(each.kept == (each.came_true >= 0.1) for each in found.history)
    assert all(each.predicted < 0 for each in found.history)
    (target,) = found.target
    assert target.change == pytest.approx(sum(each.true for each in found.history if each.kept))
    assert target.change < 0 or not any(each.kept for each in found.history)
    weights = {stage: found[f"stage{stage}"] for stage in range(2)}
    assert target.weighted == pytest.approx(float(stages.losses(weights).mean()), rel=1e-9)
    for each in weights.values():
        assert float(each.min()) >= 0
        assert float(each.mean()) == pytest.approx(1, abs=1e-12)


def test_what_was_undone_is_shortened_and_after_some_tries_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stages, train = CASES["moved"], Repeat.train

    def diverging(self: Repeat, weights: Any, *rest: Any) -> Any:
        if any(bool((each != 1).any()) for each in weights.values()):
            raise SolveError("diverged")
        return train(self, weights, *rest)

    monkeypatch.setattr(Repeat, "train", diverging)
    found = reweight(stages.chain(tmp_path), stages.query("mean"))
    lengths = [each.length for each in found.history]
    assert lengths == pytest.approx([FIRST / 4**k for k in range(4)])
    assert not any(each.kept for each in found.history)
    assert "at none of 4 lengths along the derivative of step 1" in found.stopped
    assert all(bool((found[name] == 1).all()) for name in found.weights)
    assert "diverged" in str(found)


# Wrong labels


def labelled(n: int, seed: int, *, wrong: float = 0.0) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Points on two sides of a plane; which of them have the other side's label."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, dtype=torch.float64, generator=generator)
    flipped = torch.rand(n, generator=generator) < wrong
    y = (x[:, 0] + 0.5 * x[:, 1] > 0) ^ flipped
    return list(zip(x, y.long(), strict=True)), flipped


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


Data = list[tuple[Tensor, Tensor]]


def trained(model: nn.Module, data: Data, weights: Tensor | None, seed: int, folder: Path | None) -> nn.Module:
    """A loop that multiplies each example's loss with its weight."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, eps=1e-2)
    numbered: Any = data if folder else [(*row, index) for index, row in enumerate(data)]
    loader = DataLoader(numbered, 16, shuffle=True, generator=torch.Generator().manual_seed(seed))
    recording = None if folder is None else Recording(folder, model, optimizer)
    with recording or nullcontext():
        for _ in range(5):
            for x, y, *index in loader if recording is None else recording.loader(loader):
                losses = F.cross_entropy(model(x), y, reduction="none")
                optimizer.zero_grad()
                (losses if weights is None else losses * weights[index[0]]).mean().backward()
                optimizer.step()
    return model.eval()


FIRST_DATA = labelled(80, 0)[0]
SECOND_DATA, WRONG = labelled(48, 1, wrong=0.3)  # of a first stage the head is thrown away, and wrong labels with it
ASKED, UNSEEN = labelled(100, 2)[0], labelled(400, 3)[0]


def models(weights: dict[str, Tensor], seed: int, folder: Path | None = None) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    first, second = Two().double(), Two().double()
    trained(first, FIRST_DATA, weights.get("first"), seed, folder and folder / "first")
    second.body.load_state_dict(first.body.state_dict())
    trained(second, SECOND_DATA, weights.get("second"), seed, folder and folder / "second")
    return first, second


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("noisy")
    first, second = models({}, 0, folder)
    return Chain(
        Stage("first", model=first, objective=Classification(), data=FIRST_DATA, link=Unrolled((), folder / "first")),
        Stage(
            "second",
            model=second,
            objective=Classification(),
            data=SECOND_DATA,
            link=Unrolled("body", folder / "second"),
        ),
    )


@pytest.fixture(scope="module")
def cleaned(noisy: Chain) -> Reweighting:
    return reweight(noisy, Query(ASKED), held_out=Query(UNSEEN), orders=(1,), check_orders=(7, 8))


def test_wrong_labels_lose_weight_and_unseen_data_gain(cleaned: Reweighting):
    assert float(cleaned["second"][WRONG].mean()) < 0.8 < 1 < float(cleaned["second"][~WRONG].mean())
    assert [(each.training, each.used) for each in cleaned.held_out] == [
        ("recorded order", True),
        ("order of seed 1", True),
        ("order of seed 7", False),
        ("order of seed 8", False),
    ]
    assert all(each.change < -0.01 for each in (*cleaned.held_out, *cleaned.target))


def test_the_gain_is_that_of_a_loop_of_ones_own(cleaned: Reweighting):
    """In the recorded order the very same losses; in an order that the library never saw, better ones."""
    x, y = (torch.stack(each) for each in zip(*UNSEEN, strict=True))

    def loss(weights: dict[str, Tensor], seed: int) -> float:
        return F.cross_entropy(models(weights, seed)[1](x), y).item()

    recorded = cleaned.held_out[0]
    assert loss({}, 0) == pytest.approx(recorded.uniform, rel=1e-9)
    assert loss(dict(cleaned.weights), 0) == pytest.approx(recorded.weighted, rel=1e-9)
    assert loss(dict(cleaned.weights), 99) < loss({}, 99) - 0.01


def test_weights_are_shown_and_kept(cleaned: Reweighting, tmp_path: Path):
    text = str(cleaned)
    assert "Weights of 'first', 'second': query loss: mean of 2 orders" in text
    assert "unit of all changes: query loss; negative = the weights help" in text
    assert "held-out query loss: mean of 2 orders" in text
    assert "mean of 2 other orders" in text
    assert "rms change of a weight" in text
    assert f"{cleaned.history[0].true:+.3e}" in text
    cleaned.save(tmp_path / "out")
    kept = pq.read_table(tmp_path / "out" / "weights" / "first.parquet")  # pyright: ignore[reportUnknownMemberType]
    assert kept.column("weight").to_pylist() == cleaned["first"].tolist()
    said: Any = read_json(tmp_path / "out" / "reweighting.json")
    assert [each["change"] for each in said["held_out"]] == [each.change for each in cleaned.held_out]
    assert said["history"][0]["predicted"] == cleaned.history[0].predicted
    with pytest.raises(ResultsError, match="holds something already"):
        cleaned.save(tmp_path / "out")
    frame = cleaned.to_pandas("second")
    assert list(frame.columns) == ["index", "weight"]
    assert frame["weight"].tolist() == cleaned["second"].tolist()
    weights = cleaned["first"]
    assert cleaned.effective_examples("first") == pytest.approx(80**2 / float((weights**2).sum()))
    with pytest.raises(DescriptionError, match="no stage 'third' was reweighted; type one of: 'first', 'second'"):
        cleaned["third"]


def test_one_stage_alone_leaves_the_others_weights_at_1(noisy: Chain):
    found = reweight(noisy, Query(ASKED), of="first", steps=1)
    assert list(found.weights) == ["first"]
    assert found.target[0].change < 0
    assert "no held-out query was given" in str(found)
    later = reweight(noisy, Query(ASKED), of=["second"], steps=1)
    assert list(later.weights) == ["second"]
    assert found.target[0].uniform == pytest.approx(later.target[0].uniform, rel=1e-9)


@pytest.mark.slow
def test_stages_that_the_library_trains(noisy: Chain):
    """The mean over the seeds of the links falls; a further seed is trained to check."""
    steps = Steps(Adam(2e-2, eps=1e-2), steps=12, batch_size=16)
    first, second = noisy.stages
    by_library = Chain(
        replace(first, link=Unrolled((), steps, seeds=(0, 1))), replace(second, link=Unrolled("body", steps, (0, 1)))
    )
    found = reweight(by_library, Query(ASKED), steps=2, held_out=Query(UNSEEN), check_orders=(5,))
    assert [(each.training, each.used) for each in found.held_out] == [
        ("order of seed 0", True),
        ("order of seed 1", True),
        ("order of seed 5", False),
    ]
    assert sum(each.change for each in found.target[:2]) < 0
    assert all(each.change < 0 for each in found.held_out)
    with pytest.raises(DescriptionError, match=r"give the seeds in the links: Unrolled\(shared, Steps"):
        reweight(by_library, Query(ASKED), orders=(3,))


# Refusals


def idealised(chain: Chain) -> Chain:
    first, second = chain.stages
    return Chain(replace(first, link=None), second)


def unlinked(chain: Chain) -> Chain:
    first, second = chain.stages
    return Chain(first, replace(second, link=Proximal("body")))


REFUSED: dict[str, tuple[Callable[[Chain], object], str]] = {
    "first": (
        lambda chain: reweight(idealised(chain), Query(ASKED)),
        r"stage 'first' is not recorded, .* record its training .*or reweight later stages alone: of=\['second'\]",
    ),
    "last": (
        lambda chain: reweight(unlinked(chain), Query(ASKED)),
        r"stage 'second' is not recorded, so it cannot be trained again with weights; .*Steps\(...\)\)\)$",
    ),
    "name": (lambda chain: reweight(chain, Query(ASKED), of="third"), "no stage is called 'third'"),
    "none": (lambda chain: reweight(chain, Query(ASKED), of=[]), r"of=\[\] names no stage"),
    "sum": (
        lambda chain: reweight(chain, Query(ASKED, reduction="sum")),
        r"the query has reduction='sum', .* type Query\(data, reduction='mean'\)",
    ),
    "each": (
        lambda chain: reweight(chain, Query(ASKED), held_out=Query(UNSEEN, reduction="none")),
        "held_out has reduction='none'",
    ),
    "same": (lambda chain: reweight(chain, Query(ASKED), held_out=Query(ASKED)), "the very data of the query"),
    "data": (lambda chain: reweight(chain, Query(ASKED), held_out=UNSEEN), "held_out must be a Query"),  # type: ignore[arg-type]
    "steps": (lambda chain: reweight(chain, Query(ASKED), steps=0), r"reweight\(steps=...\)"),
    "seeds": (
        lambda chain: reweight(chain, Query(ASKED), orders=(1, 2), check_orders=(2,)),
        r"each seed once: the weights are fitted to the orders \[1, 2\]",
    ),
    "one order": (lambda chain: reweight(chain, Query(ASKED), orders=3), r"orders=\.\.\.\) must be whole numbers"),  # type: ignore[arg-type]
    "no seed": (
        lambda chain: reweight(chain, Query(ASKED), check_orders=("a",)),  # type: ignore[arg-type]
        r"check_orders=\.\.\.\) must be whole numbers, .* got \('a',\)",
    ),
    "swapped": (lambda chain: reweight(Query(ASKED), chain), "give a Chain and a Query"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_with_what_to_write(case: str, noisy: Chain):
    asked, message = REFUSED[case]
    with pytest.raises(DescriptionError, match=message) as caught:
        asked(noisy)
    assert "\n" not in str(caught.value)


def test_an_idealised_first_stage_may_stand_before_reweighted_ones(noisy: Chain):
    found = reweight(idealised(noisy), Query(ASKED), of="second", steps=1)
    assert found.target[0].change < 0


def test_a_single_example_has_no_balance(tmp_path: Path):
    model = Two().double()
    data = FIRST_DATA[:1]
    trained(model, data, None, 0, tmp_path / "one")
    stage = Stage("one", model=model, objective=Classification(), data=data, link=Unrolled((), tmp_path / "one"))
    with pytest.raises(DescriptionError, match="has a single example, whose weight stays 1"):
        reweight(Chain(stage), Query(ASKED))
