"""A folder's run is gone on with only by the same run: any change that can move a score is refused, and so is doubt."""

import functools
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from examples.elastic import Elastic
from stagetrace import Chain, Direct, Hessian, Lanczos, Proximal, Query, Stage, Trace, trace
from stagetrace.errors import ResultsError
from stagetrace.objectives import Regression
from stagetrace.progress import Silent
from stagetrace.stages import data as reading
from stagetrace.stages.fingerprint import fingerprint_model
from stagetrace.stages.identity import Identity
from stagetrace.stages.identity.settings import settings_of
from stagetrace.tracing.describe import describe
from tests import sealed
from tests.hf import tiny

N = 6
FACTOR = 1.0


class Scaled(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(2, 1).double()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x)


class Weighted:
    def __init__(self, weight: Any = 1.0) -> None:
        self.weight = weight

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return float(self.weight) * (outputs - batch[1]).square().mean(1)


def plain(model: nn.Module, batch: Any, weight: float = 1.0) -> Tensor:
    return weight * FACTOR * (model(batch[0]) - batch[1]).square().mean(1)


def closing(weight: float) -> Callable[..., Tensor]:
    return lambda model, batch: weight * (model(batch[0]) - batch[1]).square().mean(1)


@dataclass
class Batch:
    x: Tensor
    y: Tensor


def by_attribute(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch.x) - batch.y).square().mean(1)


def batched(rows: list[Any], factor: float = 1.0) -> Batch:
    return Batch(factor * torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))


def paired(rows: list[Any], factor: float) -> Any:
    return factor * torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


def rows(seed: int = 0, n: int = N) -> TensorDataset:
    drawn = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, size, generator=drawn, dtype=torch.float64) for size in (2, 1))
    return TensorDataset(x, y)


class Holding(nn.Module):
    """A model with something beside its parameters."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.body, self.held = Scaled(), held

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def run(out: Path | None = None, query: dict[str, Any] | None = None, solver: Any = None, **changes: Any) -> Trace:
    usual = {"model": Scaled(), "objective": Regression(), "data": rows(), "weight_decay": 0.1}
    described: dict[str, Any] = {**usual, **changes}
    asked: dict[str, Any] = {"data": rows(1), **(query or {})}
    return trace(
        Chain(Stage("only", **described)), Query(**asked), curvature=Hessian(), solver=solver or Direct(), out=out
    )


def hooked(factor: float) -> nn.Module:
    model = Scaled()

    def scaled(layer: nn.Module, args: Any, output: Any) -> Any:
        return factor * output

    model.inner.register_forward_hook(scaled)
    return model


def buffered(value: float) -> nn.Module:
    model = Scaled()
    model.register_buffer("shift", torch.tensor(value), persistent=False)
    return model


def of_rows(factor: float) -> list[Any]:
    return [(factor * x, y) for x, y in rows()]


CHANGES: dict[str, Callable[[float], dict[str, Any]]] = {
    "an objective's attribute": lambda v: {"objective": Weighted(v)},
    "an objective's tensor": lambda v: {"objective": Weighted(torch.tensor(v))},
    "a closure": lambda v: {"objective": closing(v)},
    "a partial": lambda v: {"objective": functools.partial(plain, weight=v)},
    "a model's attribute": lambda v: {"model": Scaled(v)},
    "a model's hook": lambda v: {"model": hooked(v)},
    "a buffer that is not saved": lambda v: {"model": buffered(v)},
    "rows in batches of one's own class": lambda v: {
        "objective": by_attribute, "data": of_rows(v), "collate": batched, "query": {"collate": batched}
    },
    "a collation": lambda v: {"collate": functools.partial(paired, factor=v), "query": {"collate": None}},
    "a collation of the query": lambda v: {"query": {"collate": functools.partial(paired, factor=v)}},
    "an objective of the query": lambda v: {"query": {"objective": Weighted(v)}},
    "a solver's filter": lambda v: {"solver": Lanczos(damping=0.1, rtol=1e-4 * v)},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_and_the_same_is_read_again(change: str, tmp_path: Path):
    make = CHANGES[change]
    first = run(tmp_path / "run", **make(1.0))
    again = run(tmp_path / "run", **make(1.0))
    torch.testing.assert_close(again["only"].values, first["only"].values, rtol=0, atol=0)
    with pytest.raises(ResultsError, match="holds another run") as caught:
        run(tmp_path / "run", **make(5.0))
    assert "choose another folder" in str(caught.value)


def test_what_differs_is_said_in_numbers_where_it_is_a_number(tmp_path: Path):
    run(tmp_path, objective=Weighted(1.0))
    with pytest.raises(ResultsError, match=r"stages\.only\.objective\.settings\.weight: 1\.0 -> 5\.0"):
        run(tmp_path, objective=Weighted(5.0))


def test_a_global_that_a_loss_reads_and_a_method_that_was_edited_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(tmp_path / "global", objective=plain)
    run(tmp_path / "method", objective=Weighted())
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    monkeypatch.setattr(Weighted, "losses", lambda self, outputs, batch: 2 * (outputs - batch[1]).square().mean(1))
    for folder, objective in (("global", plain), ("method", Weighted())):
        with pytest.raises(ResultsError, match=r"stages\.only\.objective\.sha256"):
            run(tmp_path / folder, objective=objective)


def test_a_link_s_numbers_and_the_versions_are_part_of_a_run(monkeypatch: pytest.MonkeyPatch):
    def told(alpha: float) -> Any:
        first = Stage("first", model=Scaled(), objective=Regression(), data=rows())
        later = replace(first, name="later", model=Scaled(), link=Proximal("inner", alpha=alpha))
        return describe(Chain(first, later), Query(rows()), {}, {}, (), parts=False, progress=Silent())

    found = told(0.01)
    assert found["stages"]["first"]["link"] is None
    assert found["stages"]["later"]["link"] == {"name": "Proximal", "shared": {"inner": "inner"}, "alpha": 0.01}
    assert told(0.0100000001) != found
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["versions"]) >= {"python", "stagetrace", "torch"}


@pytest.mark.parametrize("entry", [0, -1])
def test_a_link_of_one_s_own_is_another_run_with_another_strength(entry: int, tmp_path: Path):
    def traced(strengths: Tensor) -> Trace:
        first = Stage("first", model=Scaled(), objective=Regression(), data=rows(), weight_decay=0.1)
        link = Elastic({"inner": "inner"}, {"inner.weight": strengths, "inner.bias": torch.ones(1)})
        later = replace(first, name="later", model=Scaled(), link=link)
        query = Query(rows(1))
        return trace(Chain(first, later), query, curvature=Hessian(), solver=Direct(), out=tmp_path)

    strengths, other = torch.ones(1, 2).double(), torch.ones(1, 2).double()
    other[0, entry] += 1e-12
    stages: Any = traced(strengths).description["stages"]
    told = stages["later"]["link"]
    assert (told["name"], told["shared"]) == ("Elastic", {"inner": "inner"})
    traced(strengths.clone())
    with pytest.raises(ResultsError, match=r"stages\.later\.link\.strengths"):
        traced(other)


# What cannot be identified


def stream() -> Any:
    return (value for value in [1.0])


class Streaming(Weighted):
    def __init__(self) -> None:
        super().__init__(1.0)
        self.settings = {"source": stream()}


UNIDENTIFIED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "objective": (lambda: {"objective": Streaming()}, r"stages\.only\.objective refers to settings\.source"),
    "model": (lambda: {"model": Holding([stream_in_a_cell()])}, r"stages\.only\.model refers to held\[0\]"),
    "query": (lambda: {"query": {"objective": Streaming()}}, r"query\.objective refers to settings\.source"),
    "collation": (
        lambda: {"collate": functools.partial(ignoring, stream()), "query": {"collate": None}},
        r"stages\.only\.collate refers to 's args\[0\]",
    ),
}


def stream_in_a_cell() -> Any:
    class Cell:
        def __init__(self) -> None:
            self.values = None

        def __deepcopy__(self, memo: Any) -> Any:
            return self

    cell = Cell()
    cell.values = stream()
    return cell


def ignoring(source: Any, items: list[Any]) -> Any:
    return paired(items, 1.0)


@pytest.mark.parametrize("case", UNIDENTIFIED)
def test_a_run_with_something_unidentified_is_kept_once_and_never_gone_on_with(case: str, tmp_path: Path):
    make, says = UNIDENTIFIED[case]
    kept = run(tmp_path / "run", **make())
    torch.testing.assert_close(Trace.load(tmp_path / "run")["only"].values, kept["only"].values)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for number in range(2):
        with pytest.raises(ResultsError, match=rf"{says}.* \(a generator\), which cannot be identified") as caught:
            run(tmp_path / "run", **make())
        assert "\n" not in str(caught.value)
        assert "choose another folder" in str(caught.value)
        if not number:  # of a run that was killed
            assert before == {path: path.read_bytes() for path in before}
            sealed.rewrite(tmp_path / "run", lambda record: record.update(status="running"))


# What an older version, or `save`, wrote


def test_a_folder_of_an_older_version_is_read_but_not_gone_on_with(tmp_path: Path):
    scores = run(tmp_path)["only"].values

    def older(record: dict[str, Any]) -> None:
        for key in ("fingerprints", "versions"):
            del record["description"][key]
        record["description"]["stages"]["only"].update(objective="Regression()", link="None")

    sealed.rewrite(tmp_path, older)
    torch.testing.assert_close(Trace.load(tmp_path)["only"].values, scores)
    with pytest.raises(ResultsError, match=r"a run of an older stagetrace.*Trace\.load.*another folder") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)


def test_without_a_folder_no_data_set_is_read_for_a_fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    read: list[int] = []
    original = reading.Examples.read

    def counted(self: Any, plan: Any) -> Any:
        for batch in original(self, plan):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(reading.Examples, "read", counted)
    monkeypatch.setattr("stagetrace.stages.fingerprint.ENDS", 1)
    result = run()
    without, _ = sum(read), read.clear()
    run(tmp_path / "kept")
    ends = 2 * 2  # the first and the last example, of the stage and of the query
    assert sum(read) == without - ends + 2 * N
    description: Any = result.description
    data = description["stages"]["only"]["data"]
    assert (data["examples"], data["sha256"]) == (N, "not taken")
    assert data["ends"] != description["query"]["data"]["ends"]


def test_a_saved_trace_is_whole_and_says_that_its_data_were_not_fingerprinted(tmp_path: Path):
    result = run()
    result.save(tmp_path / "saved")
    torch.testing.assert_close(Trace.load(tmp_path / "saved")["only"].values, result["only"].values)
    result.save(tmp_path / "saved")
    with pytest.raises(ResultsError, match=r"written by Trace\.save.*stages\.only\.data.*choose another folder"):
        run(tmp_path / "saved")
    kept = run(tmp_path / "kept")
    Trace.load(tmp_path / "kept").save(tmp_path / "copied")
    torch.testing.assert_close(run(tmp_path / "copied")["only"].values, kept["only"].values, rtol=0, atol=0)


# Settings of one's own


class Cut:
    """A filter of the user's own."""

    def __init__(self, at: float) -> None:
        self.at = at


@dataclass(frozen=True)
class Own:
    memory: int = 1
    names: tuple[str, ...] = ("a",)


def test_settings_of_one_s_own_are_told_apart():
    told = [settings_of(choice) for choice in (Cut(1.0), Cut(2.0), Own(1), Own(2), closing(1.0), closing(2.0), Own)]
    assert len({json.dumps(each) for each in told}) == len(told)
    assert settings_of(Cut(1.0)) == settings_of(Cut(1.0))
    assert settings_of(Hessian(examples=10)) == {"name": "Hessian", "examples": 10, "seed": 0}


# Another process


JOB = """
import enum, json, logging, sys, threading
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.data import TensorDataset
from examples.elastic import Elastic
from stagetrace import Chain, Direct, Hessian, Query, Stage, trace

class Kind(enum.Enum):
    MEAN = 1

@dataclass
class Settings:
    words: set = field(default_factory=lambda: {f"word {number}" for number in range(30)})
    kind: Kind = Kind.MEAN
    dtype: torch.dtype = torch.float32

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.settings = nn.Linear(2, 1), Settings()
        self.inner.register_forward_hook(lambda module, args, output: output)

    def forward(self, x):
        return self.inner(x)

def loss(model, batch):
    return WEIGHT * (model(batch[0]) - batch[1]).square().mean(1) * (1 if "one" in {"one", "two"} else 0)

def run(folder, weight):
    global WEIGHT
    WEIGHT = weight
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(6, 2), torch.randn(6, 1))
    stage = Stage("only", model=Net(), objective=loss, data=data, weight_decay=0.1)
    try:
        result = trace(Chain(stage), Query(data), curvature=Hessian(), solver=Direct(), out=folder)
        return list(Settings().words), result["only"].values.tolist()
    except Exception as error:
        return type(error).__name__

if __name__ == "__main__":
    import job
    print(json.dumps([job.run(sys.argv[1], float(weight)) for weight in sys.argv[2:]]))
"""


@pytest.mark.slow
def test_another_process_goes_on_with_the_same_run_and_not_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script, folder = tmp_path / "job.py", tmp_path / "run"
    script.write_text(JOB)
    monkeypatch.syspath_prepend(tmp_path)
    words, scores = importlib.import_module("job").run(folder, 1.0)
    monkeypatch.delitem(sys.modules, "job")
    before = (folder / "run.json").read_bytes()
    environment = {**os.environ, "PYTHONHASHSEED": "random", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(folder), "1.0", "2.0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    (there, again), other = json.loads(done.stdout)
    assert there != words, "the other process has another order of sets"
    assert again == scores
    assert other == "ResultsError"
    assert (folder / "run.json").read_bytes() == before


def test_hugging_face_models_and_tokenizers_are_identified(tmp_path: Path):
    """Whether given, or read from a folder; also after a call that set the tokenizer's padding."""

    def told(model: Any, tokenizer: Any) -> Any:
        collate = DataCollatorWithPadding(tokenizer)
        return fingerprint_model(model), Identity().of(collate), Identity().of(model.config)

    made = tiny.model("BertForSequenceClassification"), tiny.tokenizer()
    before = told(*made)
    folder = tiny.saved(tmp_path, *made)
    read = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    made[1](["a", "a b"], padding=True, truncation=True, max_length=4)
    assert told(*made) == before
    assert "unidentified" not in json.dumps(before)
    assert fingerprint_model(read[0])["sha256"] == before[0]["sha256"]
    again = [AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)]
    assert told(*read) == told(*again)
    again[1].padding_side = "left"
    again[0].config.hidden_act = "relu"
    assert all(one != other for one, other in zip(told(*read)[1:], told(*again)[1:], strict=True))
