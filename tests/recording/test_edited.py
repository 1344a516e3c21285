"""A `recording.json` that was edited, cut or damaged is refused when it is read, in one line that names it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stagetrace import Recording, Unrolled
from stagetrace.errors import ResultsError
from stagetrace.recording import Recorded
from stagetrace.recording.content import read, written
from tests.replay.runs import Net, data_of

DATA: Any = data_of(12, 3, seed=1)
Said = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("recording")
    model = Net(3, 0.0).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with Recording(made, model, optimizer) as recording:
        for x, y in recording.loader(DataLoader(DATA, 2)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert Recorded.load(made).states == (0, 1, 4, 6)
    return made


def without(name: str) -> Callable[[Said], Any]:
    return lambda said: {key: value for key, value in said.items() if key != name}


def at(name: str, change: Callable[[Any], Any]) -> Callable[[Said], Any]:
    return lambda said: {**said, name: change(said[name])}


ENTRIES = "steps", "states", "parts", "groups", "trained", "optimizer", "examples", "constants", "inputs", "files"
EDITS: dict[str, Callable[[Said], Any]] = {
    **{f"no {name}": without(name) for name in ENTRIES},
    **{f"{name} of another kind": at(name, lambda _: 1.5) for name in ENTRIES},
    "a list": lambda said: [said],
    "nothing": lambda said: None,
    "the start left out: its steps would count for nothing": at("states", lambda states: states[1:]),
    "states in another order": at("states", lambda states: states[::-1]),
    "a state twice": at("states", lambda states: [*states, states[-1]]),
    "more states than steps": at("steps", lambda steps: steps - 1),
    "no part": at("parts", lambda _: []),
    "parts that begin later": at("parts", lambda _: [1]),
    "a digest of another kind": at("files", lambda files: {**files, "states/step-00000001.safetensors": "crc:1"}),
    "a digest that is none": at("files", lambda files: {**files, "states/step-00000001.safetensors": 1}),
    "a file without a digest": at("files", without("states/step-00000004.safetensors")),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_record_is_refused(what: str, folder: Path, tmp_path: Path):
    said = json.loads((folder / "recording.json").read_text())
    (tmp_path / "recording.json").write_text(json.dumps(EDITS[what](said)))
    with pytest.raises(ResultsError, match=r"damaged or edited|of format None|ends before its first step") as refused:
        Unrolled(recording=tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_in_a_state_s_place_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "recording.json").write_text((folder / "recording.json").read_text())
    (tmp_path / "states" / "step-00000001.safetensors").mkdir(parents=True)
    with pytest.raises(ResultsError, match=r"'states/step-00000001\.safetensors' is missing"):
        Recorded.load(tmp_path).state(1)


def test_a_batch_that_lost_a_tensor_is_refused():
    structure, tensors = written((torch.ones(2), torch.zeros(1)))
    with pytest.raises(ResultsError, match="a recorded batch has lost its tensor '1'"):
        read(structure, {"0": tensors["0"]})
