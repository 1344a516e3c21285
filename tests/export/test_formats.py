"""Each format as its tool documents it, read back without stagetrace's own code; and the sign, from its definition."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from stagetrace import Chain, Frozen, Identity, Lanczos, Query, Scores, Stage, trace
from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.export import FORMATS, export, proponents, read_kronfluence
from stagetrace.objectives import Classification
from stagetrace.stages.ids import Ids

PROPONENTS = "quanda", "kronfluence", "bergson"


def scores(n_queries: int | None) -> Scores:
    shape = (7,) if n_queries is None else (n_queries, 7)
    return Scores("pretrain", torch.randn(shape, dtype=torch.float64))


def read_quanda(out: Path) -> Tensor:
    return torch.load(out / "0.pt", weights_only=True)


def read_safetensors(out: Path) -> Tensor:
    with safe_open(out / "pairwise_scores.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["all_modules"]
        return file.get_tensor("all_modules")


def read_bergson(out: Path) -> Tensor:
    """As the tool's own reader does: a memory map by the record that info.json describes."""
    info = json.loads((out / "info.json").read_text())
    rows = np.memmap(out / "scores.bin", dtype=np.dtype(info["dtype"]), mode="r", shape=(info["num_rows"],))
    assert info["num_items"] == info["num_rows"]
    assert info["attribute_tokens"] is False
    assert all(rows[f"written_{query}"].all() for query in range(info["num_scores"]))
    return torch.stack([torch.tensor(rows[f"score_{query}"]) for query in range(info["num_scores"])])


READ = {"quanda": read_quanda, "kronfluence": read_safetensors, "bergson": read_bergson}


@pytest.mark.parametrize("n_queries", [None, 1, 3])
@pytest.mark.parametrize("name", PROPONENTS)
def test_the_tools_get_the_negative(name: str, n_queries: int | None, tmp_path: Path):
    given = scores(n_queries)
    written = export(given, name, tmp_path / "out")
    found = READ[name](tmp_path / "out")
    assert found.dtype == torch.float32
    assert found.shape == (n_queries or 1, 7)
    assert torch.equal(found, (-given.values).float().reshape(n_queries or 1, 7))
    assert "positive = proponent" in written.sign
    assert {path.name for path in written.files} == {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("name", PROPONENTS)
def test_the_files_say_their_sign(name: str, tmp_path: Path):
    export(scores(None), name, tmp_path)
    said = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"positive = proponent" in said
    assert b"pretrain" in said


def test_bergson_is_told_that_higher_is_better(tmp_path: Path):
    export(scores(2), "bergson", tmp_path)
    config = json.loads((tmp_path / "config.yaml").read_text())
    assert config["steps"][0]["score"]["score_cfg"]["higher_is_better"] is True


@pytest.mark.parametrize("n_queries", [None, 2])
def test_csv_has_our_own_sign(n_queries: int | None, tmp_path: Path):
    given = scores(n_queries)
    written = export(given, "csv", tmp_path / "a.csv")
    assert written.sign.startswith("score > 0 is harmful")
    with (tmp_path / "a.csv").open(newline="") as file:
        heading, *rows = csv.reader(file)
    found = np.array(rows, dtype=np.float64)
    assert found[:, 0].tolist() == list(range(7))
    both = torch.cat([given.values.reshape(-1, 7), -given.values.reshape(-1, 7) / 7]).numpy()
    assert np.array_equal(found[:, 1:].T, both)
    assert len(heading) == 1 + len(both)
    assert all("+ harmful" in name for name in heading[1 : 1 + len(both) // 2])
    assert all("- helps" in name for name in heading[1 + len(both) // 2 :])


@pytest.mark.parametrize("n_queries", [None, 2])
def test_numpy_has_our_own_sign(n_queries: int | None, tmp_path: Path):
    given = scores(n_queries)
    export(given, "numpy", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert np.array_equal(found["score"], given.values.numpy())
        assert np.array_equal(found["removal_effect"], -given.values.numpy() / 7)
        assert (str(found["stage"]), str(found["unit"])) == ("pretrain", "query loss")
        assert str(found["sign"]).startswith("score > 0 is harmful")


@pytest.mark.parametrize("n_queries", [1, 3])
def test_kronfluence_there_and_back(n_queries: int, tmp_path: Path):
    given = scores(n_queries)
    export(given, "kronfluence", tmp_path)
    for place in (tmp_path, tmp_path / "pairwise_scores.safetensors"):
        found = read_kronfluence(place, "pretrain")
        assert found.stage == "pretrain"
        assert torch.equal(found.values, given.values.float().double())


def test_kronfluence_scores_by_module_are_summed(tmp_path: Path):
    parts = {"layer.0": torch.randn(2, 5), "layer.1": torch.randn(2, 5)}
    save_file(parts, tmp_path / "pairwise_scores.safetensors")
    found = read_kronfluence(tmp_path, "x").values
    assert torch.equal(found, -(parts["layer.0"].double() + parts["layer.1"].double()))


def test_what_is_no_file_of_kronfluence(tmp_path: Path):
    with pytest.raises(ResultsError, match="cannot be read as kronfluence's scores"):
        read_kronfluence(tmp_path, "x")
    (tmp_path / "a").write_bytes(b"no")
    with pytest.raises(ResultsError, match="give the folder"):
        read_kronfluence(tmp_path / "a", "x")
    for tensors in ({"all_modules": torch.ones(5)}, {"a": torch.ones(1, 2), "b": torch.ones(1, 3)}, {}):
        save_file(tensors, tmp_path / "pairwise_scores.safetensors")
        with pytest.raises(ResultsError, match="holds no pairwise scores"):
            read_kronfluence(tmp_path, "x")


def test_nothing_is_written_over(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    for name in PROPONENTS:
        for place in ("full", "full/a"):
            with pytest.raises(ResultsError, match="holds something already"):
                export(scores(None), name, tmp_path / place)
    for name in ("csv", "numpy"):
        with pytest.raises(ResultsError, match="is a folder"):
            export(scores(None), name, tmp_path / "full")
    with pytest.raises(DescriptionError, match="must be one of quanda, kronfluence, bergson, csv, numpy, got 'x'"):
        export(scores(None), "x", tmp_path / "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "a"]
    assert set(FORMATS) == {*PROPONENTS, "csv", "numpy"}


# The sign, from its definition


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def chain_and_query() -> tuple[Chain, Query]:
    before, after = Net(), Net()
    after.body.load_state_dict(before.body.state_dict())
    data = [TensorDataset(torch.randn(n, 4).double(), torch.randint(3, (n,))) for n in (9, 8, 3)]
    stages = (
        Stage("pretrain", model=before, objective=Classification(), data=data[0]),
        Stage("finetune", model=after, objective=Classification(), data=data[1], link=Frozen("body")),
    )
    return Chain(*stages), Query(data[2], reduction="none")


@pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")
def test_a_step_on_an_example_lowers_the_loss_of_which_it_is_a_proponent():
    """With the identity for a curvature the exported score is the gradient dot product; and a small gradient step on an
    example lowers the query loss by rate x score, which is what proponent means.
    """
    chain, query = chain_and_query()
    result = trace(chain, query, curvature=Identity(), solver=Lanczos(damping=0.0))
    found = proponents(result["finetune"])
    stage, rate = chain.stages[1], 1e-6
    head: Any = stage.model.head
    for i in range(8):
        x, y = (t[i : i + 1] for t in stage.data.tensors)
        grads = torch.autograd.grad(cross_entropy(stage.model(x), y), list(head.parameters()))
        before = cross_entropy(stage.model(query.data.tensors[0]), query.data.tensors[1], reduction="none").detach()
        with torch.no_grad():
            for p, g in zip(head.parameters(), grads, strict=True):
                p -= rate * g
            after = cross_entropy(stage.model(query.data.tensors[0]), query.data.tensors[1], reduction="none")
            for p, g in zip(head.parameters(), grads, strict=True):
                p += rate * g
        assert torch.allclose((before - after) / rate, found[:, i].double(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_ids_go_along(name: str, tmp_path: Path):
    names = [f"doc-{index}" for index in range(7)]
    given = Scores("pretrain", torch.randn(7).double(), ids=Ids(names))
    out = tmp_path / ("out" if FORMATS[name].is_folder else f"out.{name}")
    files = export(given, name, out).files
    if FORMATS[name].is_folder:
        assert json.loads(files[-1].read_text()) == names
    elif name == "csv":
        assert [row["id"] for row in csv.DictReader(out.read_text().splitlines())] == names
    else:
        assert np.load(out)["id"].tolist() == names
