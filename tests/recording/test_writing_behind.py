"""What is recorded is written behind the training: in order, whole, and what goes wrong there is said in the loop."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from stagetrace import Recording
from stagetrace.errors import ResultsError
from stagetrace.recording import Recorded, writer
from stagetrace.recording.background import Background
from stagetrace.recording.seen import Pending, Seen, number_of, told
from tests.replay.runs import Net, data_of

DATA: Any = data_of(24, 3, seed=1)


def trained(folder: Path, *, every: Any = 2, stops_at: int | None = None) -> list[int]:
    """Twelve steps; the numbers of those that were begun."""
    model, begun = Net(3, 0.0).double(), list[int]()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with Recording(folder, model, optimizer, every=every) as recording:
        for number, (x, y) in enumerate(recording.loader(DataLoader(DATA, 2))):
            begun.append(number)
            if number == stops_at:
                raise KeyboardInterrupt
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return begun


def test_pieces_are_done_in_order_and_no_more_wait_than_there_is_room():
    background, gate, done = Background(), threading.Event(), list[int]()

    def piece(number: int) -> None:
        gate.wait(5)
        done.append(number)

    def give() -> None:
        for number in range(4):
            background.do(lambda number=number: piece(number))

    giver = threading.Thread(target=give)
    giver.start()
    giver.join(0.2)
    assert giver.is_alive()  # one is being done, one waits, the third has no room
    gate.set()
    giver.join(5)
    background.wait()
    assert done == [0, 1, 2, 3]
    assert not [thread for thread in threading.enumerate() if thread.name == "stagetrace recording"]


def test_after_a_failure_nothing_more_is_done():
    background, done = Background(), list[int]()
    background.do(lambda: done.append(1 // 0))
    background.do(lambda: done.append(2))
    background.wait()
    assert isinstance(background.failure, ZeroDivisionError)
    assert done == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_comes_after_what_is_being_written():
    background, done = Background(), list[int]()

    def slow() -> None:
        time.sleep(0.2)
        done.append(1)

    background.do(slow)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert done == [1]


def test_a_disk_that_is_full_stops_the_training_and_what_was_kept_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write = writer.write_state

    def full(folder: Path, step: int, state: Any) -> str:
        if step == 4:
            raise ResultsError("cannot write it: No space left on device")
        return write(folder, step, state)

    monkeypatch.setattr(writer, "write_state", full)
    monkeypatch.setattr(writer, "_PAUSE", 0.0)
    with pytest.raises(ResultsError, match="before step 5 of the training: cannot write it: No space left"):
        trained(tmp_path)
    found = Recorded.load(tmp_path)
    assert found.states == (0, 2)
    assert len(found.read(found.blocks[0])) == 2


def test_an_interrupted_training_loses_nothing_that_waited_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write = writer.write_state

    def slow(*arguments: Any) -> str:
        time.sleep(0.05)
        return write(*arguments)

    monkeypatch.setattr(writer, "write_state", slow)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stops_at=9)
    found = Recorded.load(tmp_path)
    assert (found.steps, found.states) == (9, (0, 2, 4, 6, 8, 9))


def test_every_file_is_forced_onto_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So that what a machine without power loses are the newest ones, and not what was written an hour ago."""
    forced = set[str]()
    monkeypatch.setattr(writer, "force", lambda path: forced.add(path.relative_to(tmp_path).as_posix()))
    trained(tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found - {"recording.json"} == forced


def test_steps_that_hold_much_are_written_before_a_state_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "_PART", 20_000)  # some three steps: 5 kB each is the random generator's
    trained(tmp_path, every=100)
    parts = sorted(file.name for file in (tmp_path / "steps").iterdir())
    assert len(parts) > 2
    found = Recorded.load(tmp_path)
    assert [step.micros[0].ids for step in found.read(range(12))] == [(2 * n, 2 * n + 1) for n in range(12)]


def test_numbers_that_are_read_late_come_to_their_places():
    def batch(loss: float) -> Pending:
        pending = Pending([0], "digest")
        pending.loss = torch.tensor(loss)
        return pending

    one, two = torch.tensor(0.5), torch.tensor(0.25)
    seen = [
        Seen([batch(1.0), batch(2.0)], [{}], [(("a",), 1.0, 2.0, one)], two, ()),
        Seen([batch(3.0)], [{}], [], torch.tensor(7.0), ("b",)),
    ]
    steps = told(seen)
    assert [[micro.loss for micro in step.micros] for step in steps] == [[1.0, 2.0], [3.0]]
    assert [step.norm for step in steps] == [0.25, 7.0]
    assert steps[0].clips[0].norm == 0.5
    assert number_of(torch.tensor([2.0])) == 2.0
