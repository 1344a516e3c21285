"""What a recording keeps, that it leaves the training alone, and what it refuses."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from stagetrace import Recording
from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.recording import Recorded
from stagetrace.recording.content import digest, read, written
from tests.replay.runs import Net, Run, data_of, train

DATA = data_of(11, 3, seed=1)
RUN = Run(partial(torch.optim.Adam, lr=0.01), epochs=3, batch=4, dropout=0.2, clip=0.5, accumulate=2)
ONES = torch.ones(11, dtype=torch.float64)


def trained(folder: Path | None, run: Run = RUN) -> Net:
    torch.manual_seed(0)
    model = Net(3, run.dropout).double()
    train(run, model, DATA, ONES, seed=5, folder=folder)
    return model


def test_the_training_is_what_it_would_have_been(tmp_path: Path):
    watched, alone = trained(tmp_path / "a"), trained(None)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), alone.parameters(), strict=True))


def test_what_is_kept(tmp_path: Path):
    model = trained(tmp_path)
    found = Recorded.load(tmp_path)
    assert found.steps == 4  # nine batches, two a step: the ninth never led to one
    assert found.states == (0, 1, 4)
    assert found.optimizer == "torch.optim.adam.Adam"
    assert found.examples == 11
    steps = [step for block in found.blocks for step in found.read(block)]
    assert [len(step.micros) for step in steps] == [2, 2, 2, 2]
    assert sorted(steps[0].micros[0].ids + steps[0].micros[1].ids + steps[1].micros[0].ids) == list(range(11))
    assert all(clip.limit == 0.5 and step.norm <= 0.5 + 1e-9 for step in steps for clip in step.clips)
    assert steps[0].groups[0]["lr"] == 0.01
    x, y = read(*steps[0].micros[0].content)  # type: ignore[misc]
    rows = [DATA[index] for index in steps[0].micros[0].ids]
    assert torch.equal(x, torch.stack([row[0] for row in rows]))
    assert torch.equal(y, torch.stack([row[1] for row in rows]))
    end = found.state(4)
    assert all(torch.equal(end.values[name], p) for name, p in model.named_parameters())
    assert float(end.slots["head.weight"]["step"]) == 4


def test_what_comes_after_the_last_step_is_not_the_end(tmp_path: Path):
    model = Net(3, 0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recording(tmp_path, model, optimizer) as recording:
        for x, y in recording.loader(DataLoader(DATA, 11)):  # type: ignore[arg-type]
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        left = {name: p.detach().clone() for name, p in model.named_parameters()}
        nn.init.zeros_(model.head.weight)  # as loading the best checkpoint does
    assert torch.equal(Recorded.load(tmp_path).state(1).values["head.weight"], left["head.weight"])


def test_a_training_that_breaks_off_is_kept_up_to_there(tmp_path: Path):
    model = Net(3, 0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def three_steps() -> None:
        with Recording(tmp_path, model, optimizer) as recording:
            for number, (x, y) in enumerate(recording.loader(DataLoader(DATA, 2))):  # type: ignore[arg-type]
                if number == 3:
                    raise KeyboardInterrupt
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()

    with pytest.raises(KeyboardInterrupt):
        three_steps()
    found = Recorded.load(tmp_path)
    assert (found.steps, found.states) == (3, (0, 1, 3))
    assert not json.loads((tmp_path / "recording.json").read_text())["complete"]


def test_batches_come_back_as_they_were():
    content = {
        "input_ids": torch.tensor([[5, 300]]),
        "mask": torch.ones(1, 2, dtype=torch.bool),
        "deep": [(torch.randn(2), None), "text", 3, np.arange(3.0)],
        "wide": torch.tensor([2**40]),
    }
    back = read(*written(content))
    assert back["input_ids"].dtype == torch.int64
    assert torch.equal(back["input_ids"], content["input_ids"])  # type: ignore[arg-type]
    assert torch.equal(back["wide"], content["wide"])  # type: ignore[arg-type]
    assert torch.equal(back["deep"][0][0], content["deep"][0][0])  # type: ignore[index]
    assert back["deep"][1:3] == ["text", 3]
    assert np.array_equal(back["deep"][3], np.arange(3.0))
    assert digest(back) == digest(content)
    assert digest({**content, "wide": torch.tensor([2**40 + 1])}) != digest(content)


def test_a_batch_whose_entries_are_attributes_comes_back_as_one():
    transformers = pytest.importorskip("transformers")
    content = transformers.BatchEncoding({"input_ids": torch.tensor([[5, 300]]), "more": {"text": "a"}})
    back = read(*written({"inner": content}))["inner"]
    assert isinstance(back, transformers.BatchEncoding)
    assert torch.equal(back.input_ids, content.input_ids)
    assert back["more"] == {"text": "a"}
    assert digest(content) == digest(dict(content))


def test_a_batch_that_is_no_data_is_refused():
    """Neither kept nor by a digest, so that it is not advised to make the batch again."""
    for form in (written, digest):
        with pytest.raises(DescriptionError, match=r"a batch holds a Linear.* plain files; let collate give tensors"):
            form([nn.Linear(1, 1)])


def test_a_folder_holds_one_recording(tmp_path: Path):
    trained(tmp_path)
    with pytest.raises(ResultsError, match="holds a recording already"):
        trained(tmp_path)


@pytest.mark.parametrize("name", ["states/step-00000001.safetensors", "steps/part-00000.parquet"])
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_file_is_refused(name: str, damage: str, tmp_path: Path):
    trained(tmp_path)
    path = tmp_path / name
    if damage == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    found = Recorded.load(tmp_path)
    reads = (found.state, 1) if name.startswith("states") else (found.read, found.blocks[0])
    with pytest.raises(ResultsError, match="missing" if damage == "gone" else "not what was recorded"):
        reads[0](reads[1])  # type: ignore[arg-type]


def test_no_recording_there(tmp_path: Path):
    with pytest.raises(ResultsError, match="holds no recording"):
        Recorded.load(tmp_path)
    (tmp_path / "recording.json").write_text("{}")
    with pytest.raises(ResultsError, match="format None"):
        Recorded.load(tmp_path)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(DATA)


def test_what_cannot_be_recorded_is_refused_before_it_runs(tmp_path: Path):
    model = Net(3, 0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(DescriptionError, match="4 of the optimiser's parameters are not the model's"):
        Recording(tmp_path, Net(3, 0.0), optimizer)
    with pytest.raises(DescriptionError, match="every must be a number of steps"):
        Recording(tmp_path, model, optimizer, every=0)
    with pytest.raises(DescriptionError, match="inputs must be"):
        Recording(tmp_path, model, optimizer, inputs="some")  # type: ignore[arg-type]
    with pytest.raises(DescriptionError, match="LBFGS"):
        Recording(tmp_path, model, torch.optim.LBFGS(model.parameters()))
    recording = Recording(tmp_path, model, optimizer)
    with pytest.raises(DescriptionError, match="is a stream"):
        recording.loader(DataLoader(Stream()))
    with pytest.raises(DescriptionError, match="got a list"):
        recording.loader(DATA)
    with pytest.raises(DescriptionError, match="has not begun"):
        next(iter(recording.loader(DataLoader(DATA))))  # type: ignore[arg-type]


def test_a_step_without_a_batch_is_refused(tmp_path: Path):
    model = Net(3, 0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(DATA[0][0]).sum().backward()
    with Recording(tmp_path, model, optimizer):  # noqa: SIM117  (the recording goes on)
        with pytest.raises(DescriptionError, match=r"step\(\) number 1 came without a batch"):
            optimizer.step()
    assert not (tmp_path / "recording.json").exists()
    optimizer.step()  # the hooks are off
