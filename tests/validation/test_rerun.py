"""The recorded training repeated: against the loop that trained, really run again; other orders; what is refused."""

import copy
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stagetrace import Chain, Proximal, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DataError, DescriptionError, ResultsError, SolveError
from stagetrace.objectives import Classification
from stagetrace.replay.course import Course
from stagetrace.replay.other_order import OtherOrder
from stagetrace.validation import Adam, GroupRemovals, RandomRemovals, Rerun, Steps, TopRemovals, validate
from stagetrace.validation.fits.fit import Copies, one_copy
from stagetrace.validation.retrain import Retraining
from stagetrace.validation.workers import Job, run_jobs
from tests.replay.runs import FEATURES, Net, Run, Stages, data_of

SGD, ADAM = partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.01)
MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)

CASES = {
    "moved": Stages((Run(MOMENTUM, clip=0.4, schedule=True), Run(ADAM, dropout=0.2, accumulate=2)), (12, 11)),
    "frozen": Stages((Run(ADAM, dropout=0.2, clip=0.3), Run(MOMENTUM, freezes=True, accumulate=2)), (12, 11)),
    "three": Stages((Run(SGD, epochs=2), Run(ADAM, epochs=2, split=True), Run(ADAM, freezes=True)), (8, 7, 9)),
}


def again(chain: Chain, query: Query, stage: int, fit: Any = None) -> Retraining:
    return Retraining(chain, query, f"stage{stage}", dict.fromkeys(chain.names, fit or Rerun()))


def leaving(examples: int, removal: Sequence[int], by: float) -> Tensor:
    weights = torch.ones(examples, dtype=torch.float64)
    weights[list(removal)] -= by
    return weights


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_recorded_training_bit_for_bit_whatever_the_weights(case: str, tmp_path: Path):
    stages = CASES[case]
    chain = stages.chain(tmp_path)
    runs = [(), (2,), (1, 5)]
    for stage, examples in enumerate(stages.examples):
        found = again(chain, stages.query(), stage).losses(runs, 0.7, seed=0)
        expected = [stages.losses({stage: leaving(examples, run, 0.7)}) for run in runs]
        assert torch.equal(found, torch.stack(expected))
        assert float((found[1:] - found[0]).abs().amin(dim=1).min()) > 0


@pytest.mark.parametrize("case", ["moved", "three"])
def test_with_all_weights_1_it_ends_where_the_recording_did(case: str, tmp_path: Path):
    copies: Copies | None = None
    for problem in CASES[case].chain(tmp_path):
        copies = Rerun()(problem, torch.ones(2, len(problem.stage.examples)), copies, seed=5)
        expected = dict(problem.stage.model.named_parameters())
        for place in (0, 1):
            found = one_copy(copies, place)
            assert set(found) == set(expected)
            assert all(torch.equal(found[name], value.detach()) for name, value in expected.items())


@pytest.mark.parametrize("case", ["moved", "frozen"])
def test_its_slope_is_the_score_of_the_recorded_training(case: str, tmp_path: Path):
    stages = CASES[case]
    chain = stages.chain(tmp_path)
    scores = trace(chain, stages.query())
    for stage, n in enumerate(stages.examples):
        found = slope(chain, stages.query(), stage, n - 1)
        values = scores[f"stage{stage}"].values
        assert float((found - values[:, n - 1]).abs().max()) < 1e-6 * float(values.abs().max())


def slope(chain: Chain, query: Query, stage: int, example: int, h: float = 1e-4) -> Tensor:
    """`n d(query losses)/d(weight)`, by central differences of reruns, extrapolated: the error is of order h^4."""
    n = len(chain.stages[stage].examples)
    weights = torch.ones(4, n, dtype=torch.float64)
    weights[:, example] += torch.tensor([h, -h, h / 2, -h / 2], dtype=torch.float64)
    copies: Copies | None = None
    for problem in chain.bound_stages[stage:]:
        given = weights if copies is None else torch.ones(4, len(problem.stage.examples), dtype=torch.float64)
        copies = Rerun()(problem, given, copies, seed=0)
    assert copies is not None
    up, down, half_up, half_down = (losses_of(chain, query, one_copy(copies, place)) for place in range(4))
    return n * (4 * (half_up - half_down) / h - (up - down) / (2 * h)) / 3


def losses_of(chain: Chain, query: Query, values: dict[str, Tensor]) -> Tensor:
    risk, last = query.risk(chain.last), chain.last
    (batch,) = risk.read(risk.examples.batch_indices())
    own, inherited = ({name: values[name] for name in space.names} for space in (last.trained, last.inherited))
    with torch.no_grad():
        return risk.losses(own, inherited, batch)


# Running statistics


class Normed(nn.Module):
    """A body with batch norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 3, bias=False), nn.BatchNorm1d(3), nn.Tanh())
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def normed(weights: Tensor, folder: Path | None) -> list[Normed]:
    """Two stages, the statistics handed on; weights are those of the first stage's examples."""
    models = list[Normed]()
    for stage in (0, 1):
        torch.manual_seed(stage)
        model = Normed().double()
        if models:
            model.body.load_state_dict(models[0].body.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        given = weights if stage == 0 else torch.ones(8)
        recording = None if folder is None else Recording(folder / str(stage), model, optimizer)
        with recording or nullcontext():
            loader: Any = DataLoader(data_of(8, 2, seed=stage), 4)  # type: ignore[arg-type]
            for step, (x, y) in enumerate(loader if recording is None else recording.loader(loader)):
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x), y, reduction="none")
                (losses * given[4 * step : 4 * step + 4]).mean().backward()
                optimizer.step()
        models.append(model.eval())
    return models


def test_running_statistics_are_those_of_the_copy(tmp_path: Path):
    models = normed(torch.ones(8), tmp_path)
    links = [Unrolled(recording=tmp_path / "0"), Unrolled("body", tmp_path / "1")]
    stages = [
        Stage(f"stage{i}", model=model, objective=Classification(), data=data_of(8, 2, seed=i), link=links[i])
        for i, model in enumerate(models)
    ]
    query = Query(data_of(5, 2, seed=7), reduction="none")
    found = again(Chain(*stages), query, 0).losses([(), (1,)], 1.0, seed=0)
    x, y = (torch.stack(each) for each in zip(*data_of(5, 2, seed=7), strict=True))
    for place, removal in enumerate([(), (1,)]):
        model = normed(leaving(8, removal, 1.0), None)[1]
        assert torch.equal(found[place], F.cross_entropy(model(x), y, reduction="none").detach())


# The whole comparison

# Smooth in the weights: Adam's first steps are as large for any gradient, but for a small one against its eps.
GENTLE = Stages(
    (
        Run(partial(torch.optim.SGD, lr=0.02, momentum=0.9), epochs=4, clip=2.0),
        Run(partial(torch.optim.Adam, lr=0.01, eps=0.1), epochs=4, dropout=0.1),
    ),
    (15, 12),
)


def test_scores_through_recordings_predict_reruns(tmp_path: Path):
    """What was recorded is repeated where no other truth is given; small parts agree in size, too."""
    chain, query = GENTLE.chain(tmp_path), GENTLE.query("mean")
    choices = [RandomRemovals(8, by=0.1), GroupRemovals(0.2, 8, by=0.1), GroupRemovals(0.2, 8)]
    for stage in chain.names:
        found = validate(chain, query, stage=stage, choices=choices, processes=1)
        for choice in choices:
            measured = found[choice.name]
            agreement = measured.agreement["multi-stage influence"]
            assert measured.effects.shape == (1, 8)  # nothing is drawn
            assert agreement.pearson_r > (0.99 if choice.by < 1 else 0.97)
            assert abs(agreement.slope - 1) < (0.05 if choice.by < 1 else 0.2)
        assert found.control.losses.tolist() == [pytest.approx(found.control.traced, rel=1e-12)]


def test_each_stage_has_the_truth_it_is_given_or_its_recording(tmp_path: Path):
    chain, query = GENTLE.chain(tmp_path), GENTLE.query("mean")
    steps = Steps(Adam(1e-3), 3, 5)
    given: dict[str, Any] = {"choices": [RandomRemovals(3)], "processes": 1, "estimators": [Nothing()], "seeds": (0,)}
    mixed = validate(chain, query, fit={"stage0": steps}, **given).measured[0].effects
    expected = Retraining(chain, query, "stage0", {"stage0": steps, "stage1": Rerun()}).losses(
        [(), *RandomRemovals(3).removals(15, torch.zeros(15))], 1.0, 0
    )
    torch.testing.assert_close(mixed[0], expected[1:] - expected[0], rtol=1e-9, atol=1e-14)
    stages = [chain.stages[0], replace(chain.stages[1], link=Proximal("body", alpha=1.0))]
    with pytest.raises(DescriptionError, match=r"no fit for stage 'stage1'.*link=Unrolled"):
        validate(Chain(*stages), query, **given)


class Nothing:
    """Predicts nothing."""

    name, unit = "nothing", None

    def removal_effects(self, chain: Chain, query: Any, stage: str, progress: Any = None) -> Tensor:
        return torch.zeros(len(chain[stage].stage.examples))


def test_a_recording_serves_where_the_link_is_another(tmp_path: Path):
    """Any description of a stage can be held against its recorded training."""
    stages = CASES["moved"]
    chain = stages.chain(tmp_path)
    other = Chain(replace(chain.stages[0], link=None), replace(chain.stages[1], link=Proximal("body", alpha=1.0)))
    fits = {f"stage{i}": Rerun(recording=tmp_path / str(i)) for i in (0, 1)}
    runs = [(), (3,)]
    found = Retraining(other, stages.query(), "stage0", fits).losses(runs, 1.0, 0)
    assert torch.equal(found, again(chain, stages.query(), 0).losses(runs, 1.0, 0))


def test_two_processes_find_what_one_finds_and_the_folder_goes_on(tmp_path: Path):
    chain, query = GENTLE.chain(tmp_path), GENTLE.query("mean")
    retraining = again(chain, query, 0)
    works = [Job(0, 1.0, ((0,), (1,))), Job(0, 1.0, ((2,),)), Job(0, 1.0, ((3,), (4,)))]
    one, two = ({done.job: done.losses for done in run_jobs(retraining, works, processes)} for processes in (1, 2))
    assert set(one) == set(two)
    assert all(torch.equal(one[work], two[work]) for work in works)
    given: dict[str, Any] = {
        "choices": [RandomRemovals(3)],
        "processes": 1,
        "estimators": [Nothing()],
        "out": tmp_path / "run",
    }
    first = validate(chain, query, **given).measured[0].effects
    lines = (tmp_path / "run" / "retrainings.jsonl").read_text()
    assert torch.equal(validate(chain, query, **given).measured[0].effects, first)
    assert (tmp_path / "run" / "retrainings.jsonl").read_text() == lines
    with pytest.raises(ResultsError, match=r"fits\.stage0\.order"):
        validate(chain, query, fit=Rerun("other"), **given)


# Other orders


def course(chain: Chain, stage: int) -> tuple[Any, Course]:
    problem = chain.bound_stages[stage]
    return problem, Course.of(problem, problem.stage.link.recording)  # type: ignore[union-attr,arg-type]


def test_another_order_has_as_many_examples_in_each_batch_and_passes_over_all_of_them(tmp_path: Path):
    problem, recorded = course(CASES["moved"].chain(tmp_path), 1)
    other = OtherOrder(problem, recorded)
    plans = [[[micro.ids for micro in step.micros] for step, _ in other.steps(seed)] for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    assert [[len(ids) for ids in step] for step in plans[0]] == [[len(ids) for ids in step] for step in recorded.ids]
    batches = [ids for step in plans[2] for ids in step]
    for epoch in range(3):  # of 11 examples in batches of 5; two batches a step, the odd one at the end is no step
        seen = [index for ids in batches[3 * epoch : 3 * epoch + 3] for index in ids]
        assert len(seen) == len(set(seen)) >= 10
    assert [factors for _, factors in other.steps(0)] == list(recorded.factors)


def test_a_pass_leaves_out_what_does_not_fill_a_batch(tmp_path: Path):
    bound, recorded = course(trained(tmp_path, passes=3, batch_size=3, drop_last=True), 0)
    batches = [step.micros[0].ids for step, _ in OtherOrder(bound, recorded).steps(0)]
    assert [len(ids) for ids in batches] == [3] * 6  # of 8 examples
    assert all(len({*batches[place], *batches[place + 1]}) == 6 for place in (0, 2, 4))
    assert len(set(sum(batches, ()))) > 6  # not the same ones in every pass


def test_another_order_draws_other_masks(tmp_path: Path):
    bound, recorded = course(CASES["moved"].chain(tmp_path), 1)
    steps = [recorded.steps(), *(OtherOrder(bound, recorded).steps(seed) for seed in (0, 0, 1))]
    states = [torch.stack([m.generators["cpu"] for step, _ in each for m in step.micros]) for each in steps]
    assert torch.equal(states[1], states[2])
    for one, other in ((0, 1), (1, 3)):
        assert not bool((states[one] == states[other]).all(dim=1).any())
    assert len({tuple(state.tolist()) for state in states[1]}) == len(states[1])


def test_a_training_in_another_order_is_that_of_a_loop_by_hand(tmp_path: Path):
    stages = Stages((Run(MOMENTUM, clip=0.4, schedule=True, accumulate=2),), (11,))
    chain, weights = stages.chain(tmp_path), leaving(11, (4,), 0.5)
    problem, recorded = course(chain, 0)
    found = one_copy(Rerun("other")(problem, weights.unsqueeze(0), None, seed=3), 0)
    torch.manual_seed(0)
    model = Net(2, 0.0).double()
    optimizer = MOMENTUM(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    data = stages.data(0)
    for step, _ in OtherOrder(problem, recorded).steps(3):
        optimizer.zero_grad()
        for micro in step.micros:
            x, y = (torch.stack(each) for each in zip(*[data[index] for index in micro.ids], strict=True))
            losses = weights[list(micro.ids)] * F.cross_entropy(model(x), y, reduction="none")
            (losses.mean() / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.4)
        optimizer.step()
        schedule.step()
    assert all(torch.equal(found[name], value) for name, value in model.named_parameters())


@pytest.mark.slow
def test_other_orders_are_drawn_by_the_seed_and_paired(tmp_path: Path):
    """Dropout and all: the control does not depend on what it is trained beside."""
    stages = CASES["moved"]
    chain, query = stages.chain(tmp_path), stages.query("mean")
    fit = Rerun("other")
    assert fit.is_stochastic
    retraining = again(chain, query, 0, fit)
    together, alone = retraining.losses([(), (1,)], 1.0, seed=1), retraining.losses([()], 1.0, seed=1)
    assert torch.equal(together[:1], alone)
    other = retraining.losses([(), (1,)], 1.0, seed=2)
    assert float((together - other).abs().min()) > 0
    assert float(abs(alone - again(chain, query, 0).losses([()], 1.0, 0))) > 0
    found = validate(chain, query, fit=fit, choices=[TopRemovals(3)], seeds=(1, 2), processes=1).measured[0]
    assert found.effects.shape == (2, 3)
    assert found.reliability is not None


def drawing(rows: Any) -> Any:
    """A collation that draws from every generator there is."""
    x, y = (torch.stack(each) for each in zip(*rows, strict=True))
    return x + 0.1 * torch.randn(1) + 0.1 * np.random.rand() + 0.1 * random.random(), y


def trained(folder: Path, **loader: Any) -> Chain:
    """One stage."""
    torch.manual_seed(3)
    model, data = Net(3, 0.0).double(), data_of(8, 3, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    divide, passes = loader.pop("divide", None), loader.pop("passes", 1)
    loader = {"batch_size": 4, **loader}
    with Recording(folder, model, optimizer, inputs=loader.pop("inputs", "kept")) as recording:
        watched = recording.loader(DataLoader(data, **loader))  # type: ignore[arg-type]
        for _ in range(passes):
            for x, y in watched:
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x), y, reduction="none")
                (losses.mean() if divide is None else losses.sum() / divide(y)).backward()
                optimizer.step()
    link, collate = Unrolled(recording=folder), loader.get("collate_fn")
    return Chain(Stage("stage0", model=model.eval(), objective=Classification(), data=data, link=link, collate=collate))


def test_what_a_collation_draws_follows_from_the_seed(tmp_path: Path):
    problem, recorded = course(trained(tmp_path, collate_fn=drawing), 0)
    other = OtherOrder(problem, recorded)

    def drawn(seed: int) -> list[Tensor]:
        return [step.micros[0].content[1]["0"] for step, _ in other.steps(seed)]  # type: ignore[index]

    torch.manual_seed(5)
    states = random.getstate(), torch.get_rng_state()
    first = drawn(0)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    np.random.rand(3)
    random.seed(8)
    assert all(torch.equal(one, two) for one, two in zip(first, drawn(0), strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first, drawn(1), strict=True))


# What is refused


def shifted(chain: Chain) -> Chain:
    """The same number of examples, one of them another."""
    data = list(chain.stages[0].data)
    data[0] = (data[0][0] + 1, data[0][1])
    return Chain(replace(chain.stages[0], data=data))


REFUSED: dict[str, tuple[Callable[[Path], Chain], Callable[[], Rerun], str]] = {
    "no recording": (
        lambda folder: Chain(replace(trained(folder).stages[0], link=None)),
        Rerun,
        r"stage 'stage0': there is no recorded training to repeat; give link=Unrolled",
    ),
    "fewer examples": (
        lambda folder: Chain(replace(trained(folder).stages[0], data=data_of(8, 3, seed=1)[:-1])),
        Rerun,
        "went over a data set of 8 examples, the stage's has 7",
    ),
    "others, made again": (
        lambda folder: shifted(trained(folder, inputs="again")),
        Rerun,
        "is not the one that was trained on",
    ),
    "others, in another order": (
        lambda folder: shifted(trained(folder)),
        lambda: Rerun("other"),
        "do not make the batches that were trained on",
    ),
    "a divisor of its own": (
        lambda folder: trained(folder, divide=lambda y: 1 + y.sum()),
        lambda: Rerun("other"),
        "divided by what depends on the examples in a batch",
    ),
    "another loss": (
        lambda folder: Chain(replace(trained(folder).stages[0], objective=squared)),
        Rerun,
        "the norm of the gradient",
    ),
}


def squared(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none").square()


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_recorded_training_is_refused_before_anything_is_measured(case: str, tmp_path: Path):
    make, fit, message = REFUSED[case]
    with pytest.raises((DescriptionError, DataError, ResultsError), match=message) as caught:
        validate(
            make(tmp_path),
            Query(data_of(3, 3, seed=2)),
            fit=fit(),
            choices=[RandomRemovals(3)],
            estimators=[Nothing()],
            seeds=(0,),
            processes=1,
        )
    assert "\n" not in str(caught.value)


def test_divisors_that_follow_from_numbers_of_examples_are_known_in_any_order(tmp_path: Path):
    """Sums, and a batch that is smaller than the others."""
    assert OtherOrder(*course(trained(tmp_path / "sum", divide=lambda y: 1), 0))
    assert OtherOrder(*course(trained(tmp_path / "mean", divide=len), 0))
    assert OtherOrder(*course(CASES["moved"].chain(tmp_path / "ragged"), 0))


def test_a_rerun_that_diverges_is_said(tmp_path: Path):
    chain = trained(tmp_path)
    with pytest.raises(SolveError, match=r"repeated with other weights, diverged .*by=0\.1"):
        Rerun()(chain.last, torch.full((1, 8), 1e300, dtype=torch.float64), None, 0)


def test_an_order_is_one_of_two():
    with pytest.raises(DescriptionError, match="order must be 'recorded' or 'other', got 'any'"):
        Rerun("any")  # type: ignore[arg-type]
    assert Rerun() == copy.deepcopy(Rerun()) != Rerun("other")
