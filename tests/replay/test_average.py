"""A stage that ended at the moving average of its parameters, against the same training really run again."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from stagetrace import Chain, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import Classification
from stagetrace.recording import Recorded
from stagetrace.validation import RandomRemovals, validate
from tests.cases import slow_but
from tests.replay.runs import Net, data_of

Adam, SGD = torch.optim.Adam, torch.optim.SGD
EXAMPLES = (12, 10)
DATA = [data_of(n, 2 + stage, seed=10 + stage) for stage, n in enumerate(EXAMPLES)]
ASKED = data_of(6, 3, seed=99)


class ModelEmaV3(nn.Module):
    """As timm's: a copy that is moved in place, by a decay that is warmed up."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module, self.step = copy.deepcopy(model), 0

    def update(self, model: nn.Module) -> None:
        self.step += 1
        decay = min(0.95, (1 + self.step) / (4 + self.step))
        with torch.no_grad():
            for mine, theirs in zip(self.module.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 1 - decay)


class EMAModel:
    """As diffusers': a list of tensors, and no module."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow_params = [p.detach().clone() for p in model.parameters()]

    def step(self, model: nn.Module) -> None:
        with torch.no_grad():
            for mine, theirs in zip(self.shadow_params, model.parameters(), strict=True):
                mine.sub_(0.2 * (mine - theirs))

    def copied_to(self, model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for mine, theirs in zip(self.shadow_params, model.parameters(), strict=True):
                theirs.copy_(mine)
        return model


@dataclass(frozen=True)
class Way:
    """An average: how it is made and updated, each so many steps from one on, and the model that it leaves."""

    made: Callable[[nn.Module], Any]
    updated: Callable[[Any, nn.Module], None]
    left: Callable[[Any, nn.Module], nn.Module]
    each: int = 1
    since: int = 0


def inner(average: Any, model: nn.Module) -> nn.Module:
    del model
    return average.module


def from_elsewhere(model: nn.Module) -> ModelEmaV3:
    """An average that begins at 0, as some do: where training starts from moves it through the steps alone."""
    average = ModelEmaV3(model)
    with torch.no_grad():
        for mine in average.module.parameters():
            mine.zero_()
    return average


WAYS = {
    "ema": Way(
        partial(AveragedModel, multi_avg_fn=get_ema_multi_avg_fn(0.8)), lambda a, m: a.update_parameters(m), inner
    ),
    "swa every other step from the third on": Way(
        AveragedModel, lambda a, m: a.update_parameters(m), inner, each=2, since=2
    ),
    "timm": Way(ModelEmaV3, lambda a, m: a.update(m), inner),
    "from elsewhere": Way(from_elsewhere, lambda a, m: a.update(m), inner),
    "diffusers": Way(EMAModel, lambda a, m: a.step(m), lambda a, m: a.copied_to(m)),
}


def train(stage: int, before: nn.Module | None, way: Way, weights: Tensor, folder: Path | None = None) -> nn.Module:
    """One stage by a loop that users write, from the average of the stage before; gives its own average."""
    torch.manual_seed(stage)
    model = Net(2 + stage, dropout=0.1).double()
    if before is not None:
        model.body.load_state_dict(before.body.state_dict())  # pyright: ignore
    optimizer = Adam(model.parameters(), lr=0.02) if stage == 0 else SGD(model.parameters(), lr=0.1, momentum=0.5)
    average, rows = way.made(model), [(*row, index) for index, row in enumerate(DATA[stage])]
    given: Any = rows if folder is None else DATA[stage]
    loader = DataLoader(given, 4, shuffle=True, generator=torch.Generator().manual_seed(stage))
    recording = None if folder is None else Recording(folder, model, optimizer, average=average)
    steps = 0
    with recording or nullcontext():
        for _ in range(3):
            for x, y, *index in loader if recording is None else recording.loader(loader):
                losses = F.cross_entropy(model(x), y, reduction="none")
                (losses * weights[index[0]] if index else losses).mean().backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
                if steps > way.since and steps % way.each == 0:
                    way.updated(average, model)
    return way.left(average, model).eval()


def models(way: Way, weights: dict[int, Tensor], folder: Path | None = None) -> list[nn.Module]:
    made = list[nn.Module]()
    for stage, n in enumerate(EXAMPLES):
        given = weights.get(stage, torch.ones(n).double())
        made.append(train(stage, made[-1] if made else None, way, given, folder and folder / str(stage)))
    return made


def chain_of(folder: Path, made: list[nn.Module]) -> Chain:
    return Chain(
        *(
            Stage(
                f"stage{stage}",
                model=model,
                objective=Classification(),
                data=DATA[stage],
                link=Unrolled("body" if stage else (), folder / str(stage)),
            )
            for stage, model in enumerate(made)
        )
    )


def slope(way: Way, stage: int, example: int) -> Tensor:
    """The score by central differences of both trainings, extrapolated."""

    def at(move: float) -> Tensor:
        weights = torch.ones(EXAMPLES[stage]).double()
        weights[example] += move
        x, y = (torch.stack(each) for each in zip(*ASKED, strict=True))
        return F.cross_entropy(models(way, {stage: weights})[-1](x), y, reduction="none").detach()

    coarse, fine = ((at(h) - at(-h)) / (2 * h) for h in (2e-4, 1e-4))
    return EXAMPLES[stage] * (4 * fine - coarse) / 3


@pytest.mark.parametrize("name", slow_but(WAYS, "ema", "from elsewhere"))
def test_scores_are_the_slopes_of_training_again(name: str, tmp_path: Path):
    way = WAYS[name]
    result = trace(chain_of(tmp_path, models(way, {}, tmp_path)), Query(ASKED, reduction="none"))
    for stage, examples in enumerate(EXAMPLES):
        scores = result[f"stage{stage}"].values
        for example in (stage, examples - 1)[: 1 + (name == "ema")]:
            gap = (scores[:, example] - slope(way, stage, example)).abs().max()
            assert gap <= 1e-6 * scores.abs().max()
        notes = result.solutions[f"stage{stage}"].notes
        assert "the stage ended at the moving average of the parameters, which is followed" in notes


def test_decays_are_measured(tmp_path: Path):
    """The first update of `AveragedModel` copies; timm's decay is warmed up."""
    found = {}
    for name in ("ema", "timm", "swa every other step from the third on"):
        models(WAYS[name], {}, tmp_path / name)
        recorded = Recorded.load(tmp_path / name / "0")
        found[name] = [step.average for block in recorded.blocks for step in recorded.read(block)]
    assert found["ema"] == pytest.approx([0.0, *[0.8] * 8], abs=1e-9)
    assert found["timm"] == pytest.approx([(1 + n) / (4 + n) for n in range(1, 10)], abs=1e-9)
    swa = found["swa every other step from the third on"]
    assert [d is None for d in swa] == [n % 2 == 0 or n < 3 for n in range(9)]
    assert [d for d in swa if d is not None] == pytest.approx([0.0, 1 / 2, 2 / 3], abs=1e-9)


def test_the_trained_parameters_can_be_traced_too(tmp_path: Path):
    """The same recording, the stage at what the optimiser left: as if there were no average."""
    torch.manual_seed(0)
    model = Net(2, dropout=0.0).double()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    optimizer = SGD(model.parameters(), lr=0.1)
    with Recording(tmp_path, model, optimizer, average=average) as recording:
        for x, y in recording.loader(DataLoader(DATA[0], 4)):  # pyright: ignore
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            average.update_parameters(model)
    results = []
    for each in (model.eval(), average.module.eval()):
        stage = Stage("one", model=each, objective=Classification(), data=DATA[0], link=Unrolled(recording=tmp_path))
        results.append(trace(Chain(stage), Query(DATA[0][:4])))
    assert not any("average" in note for note in results[0].solutions["one"].notes)
    assert any("average" in note for note in results[1].solutions["one"].notes)
    assert not torch.allclose(results[0]["one"].values, results[1]["one"].values, rtol=0.05)


def test_the_recorded_training_is_repeated_with_its_average(tmp_path: Path):
    chain = chain_of(tmp_path, models(WAYS["ema"], {}, tmp_path))
    found = validate(chain, Query(ASKED), choices=[RandomRemovals(5, by=1e-3)], processes=1)
    agreement = found.measured[0].agreement["multi-stage influence"]
    assert agreement.pearson_r > 0.9999
    assert 0.99 < agreement.slope < 1.01
    assert found.control.loss == pytest.approx(found.control.traced, rel=1e-9)


def recorded_with(folder: Path, average: Any, touched: Callable[[Any, nn.Module], None], late: bool = False) -> Net:
    torch.manual_seed(0)
    model = Net(2, dropout=0.0).double()
    made = average(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    with Recording(folder, model, optimizer, average=made) as recording:
        for x, y in recording.loader(DataLoader(DATA[0], 4)):  # pyright: ignore
            if late:
                touched(made, model)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if not late:
                touched(made, model)
    return model


def noisy(average: Any, model: nn.Module, size: float = 1e-3) -> None:
    average.update_parameters(model)
    with torch.no_grad():
        average.module.head.weight.add_(size)


def away(average: Any, model: nn.Module) -> None:
    """From the parameters, by a tenth of the way: d = 1.1, which no mean has."""
    with torch.no_grad():
        for mine, theirs in zip(average.module.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, -0.1)


@pytest.mark.parametrize(
    ("average", "touched", "late", "words"),
    [
        (AveragedModel, noisy, False, r"after step 1 the average was changed to what is no mean"),
        (AveragedModel, partial(noisy, size=1e-12), False, r"after step 1 the average was changed to what is no mean"),
        (AveragedModel, away, False, r"after step 1 the average was changed to what is no mean"),
        (AveragedModel, lambda a, m: a.update_parameters(m), True, r"updated between the batch and its optimizer.step"),
        (lambda m: Net(3, 0.0).double(), lambda a, m: None, False, r"Net has no 'head.weight' of the shape \[2, 5\]"),
        (lambda m: m, lambda a, m: None, False, r"'body.0.weight' is the very parameter that is trained"),
        (lambda m: 3, lambda a, m: None, False, r"got a int; give a torch.optim.swa_utils.AveragedModel"),
    ],
)
def test_what_is_no_average_of_the_training_is_refused(
    average: Any, touched: Any, late: bool, words: str, tmp_path: Path
):
    with pytest.raises(DescriptionError, match=words):
        recorded_with(tmp_path, average, touched, late)


def test_an_average_that_does_not_come_out_is_refused(tmp_path: Path):
    """The recorded decay is another one: the replayed average ends elsewhere, while losses and norms agree."""
    import json

    import pyarrow.parquet as pq

    from stagetrace.results.files import sha256_of

    made = models(WAYS["ema"], {}, tmp_path)
    folder = tmp_path / "1"
    path = folder / "steps/part-00000.parquet"
    rows = pq.read_table(path)
    changed = [s and json.dumps({**json.loads(s), "average": 0.5}) for s in rows["settings"].to_pylist()]
    place = rows.schema.get_field_index("settings")
    pq.write_table(rows.set_column(place, rows.schema.field(place), [changed]), path)
    said = json.loads((folder / "recording.json").read_text())
    said["files"]["steps/part-00000.parquet"] = sha256_of(path)
    (folder / "recording.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match="the averaged parameters end"):
        trace(chain_of(tmp_path, made), Query(ASKED))
