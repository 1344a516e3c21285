"""One process at a time writes to a run folder; a dead one, or a folder that was deleted, is in nobody's way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stagetrace import trace
from stagetrace.errors import ResultsError
from stagetrace.results import RunFolder, Trace
from stagetrace.results.lock import DEAD_AFTER, Lock, _beat, refuse_in_use  # pyright: ignore[reportPrivateUsage]
from stagetrace.results.parts import split
from tests import jobs
from tests.commands import Command, in_process

MakeTrace = Callable[..., Trace]

# holds the folder, has a child of its own as a loader of batches is, says so, and does nothing more
HOLDS = """
import os, sys
from stagetrace.results import RunFolder
folder = RunFolder.open(sys.argv[1], {"a": 1})
child = os.fork()
if child:
    print(child, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stage_trace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`stagetrace WORDS` in this process: its exit code, standard output and standard error."""
    yield from in_process(monkeypatch, capsys, 400)


def test_a_second_process_is_refused_at_once_and_a_killed_one_is_in_nobodys_way(
    tmp_path: Path, stage_trace: Command
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", HOLDS, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            said = rf"run is in use: process {holder.pid} on .* is writing to it; .* choose another folder"
            before = (out / "run.json").read_bytes()
            os.utime(out / ".lock", times=(0, 0))  # a process that stands still lives, too
            for refused in (
                lambda: RunFolder.open(out, {"a": 1}),
                lambda: Trace({}, description={"a": 1}).save(out),
                lambda: refuse_in_use(out),
            ):
                with pytest.raises(ResultsError, match=said):
                    refused()
            with pytest.raises(ResultsError, match=rf"not finished; process {holder.pid} on .* is writing to it"):
                Trace.load(out)
            code, _, err = stage_trace("score", "no such target", "--out", out)  # not even looked for
            assert code == 1
            assert "is in use" in err
            assert (out / "run.json").read_bytes() == before
            holder.kill()
            holder.wait()
            assert (out / ".lock").exists()
            RunFolder.open(out, {"a": 1}).close()  # although the child lives on
        finally:
            os.kill(child, signal.SIGKILL)
    assert sorted(path.name for path in out.iterdir()) == ["run.json"]


def test_two_of_one_process_do_not_share_a_folder_either(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", {}), pytest.raises(ResultsError, match="in use"):
        RunFolder.open(tmp_path / "run", {})
    RunFolder.open(tmp_path / "run", {}).close()


def test_a_folder_that_nobody_holds_any_more_is_let_go(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, {})
    del run
    RunFolder.open(tmp_path, {}).close()


def other_machines(folder: Path, age: float) -> None:
    folder.mkdir(exist_ok=True)
    (folder / ".lock").write_text(json.dumps({"process": 7, "machine": "far-away", "since": "2026-01-01 00:00:00"}))
    os.utime(folder / ".lock", times=(time.time() - age, time.time() - age))


def test_another_machines_process_counts_as_long_as_it_gives_signs_of_life(tmp_path: Path) -> None:
    other_machines(tmp_path, DEAD_AFTER / 2)
    with pytest.raises(ResultsError, match=r"in use: process 7 on far-away \(since 2026-01-01 00:00:00\)"):
        RunFolder.open(tmp_path, {})
    other_machines(tmp_path, DEAD_AFTER + 1)
    RunFolder.open(tmp_path, {}).close()


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00" * 10])
def test_a_lock_without_a_name_in_it_does_not_block(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    RunFolder.open(tmp_path, {}).close()


def test_the_sign_of_life_is_the_files_time(tmp_path: Path) -> None:
    class TwoBeats(threading.Event):
        left = 2

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            assert timeout < DEAD_AFTER / 3
            self.left -= 1
            return self.left < 0

    lock = Lock(tmp_path)
    os.utime(tmp_path / ".lock", times=(0, 0))
    _beat(tmp_path / ".lock", TwoBeats())
    assert time.time() - (tmp_path / ".lock").stat().st_mtime < DEAD_AFTER / 2
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_folder_is_deleted_stops_and_leaves_no_stub(trace: MakeTrace, tmp_path: Path) -> None:
    made, out = trace(), tmp_path / "run"
    part = next(split(made["pretrain"]))
    with RunFolder.open(out, made.description) as run:
        run.write_solution("pretrain", made.solutions["pretrain"])
        shutil.rmtree(out)
        for act in (
            lambda: run.write_part("pretrain", 0, part),
            lambda: run.write_solution("finetune", made.solutions["finetune"]),
            lambda: run.finish({}),
        ):
            with pytest.raises(ResultsError, match="run was deleted, or taken over by another process"):
                act()
    assert not out.exists()


def test_a_run_whose_folder_was_taken_over_stops(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace()
    with RunFolder.open(tmp_path, made.description) as run:
        (tmp_path / ".lock").unlink()
        with RunFolder.open(tmp_path, made.description) as other:
            with pytest.raises(ResultsError, match="taken over by another process"):
                run.write_solution("pretrain", made.solutions["pretrain"])
            run.close()
            other.write_solution("pretrain", made.solutions["pretrain"])


def stub(folder: Path, trace: Trace) -> None:
    """What is left of a deleted run: files of scores, and folders."""
    with RunFolder.open(folder, trace.description) as run:
        run.write_part("pretrain", 0, next(split(trace["pretrain"])))
    (folder / "run.json").unlink()


def test_a_stub_left_by_a_deleted_folder_does_not_block(trace: MakeTrace, tmp_path: Path) -> None:
    made = trace()
    (tmp_path / "empty" / "scores" / "pretrain").mkdir(parents=True)
    stub(tmp_path / "own", made)
    for name in ("empty", "own"):
        with RunFolder.open(tmp_path / name, made.description) as run:
            assert (run.part("pretrain", 0) is None) == (name == "empty")


def test_a_stub_of_another_run_is_refused_and_left_alone(trace: MakeTrace, tmp_path: Path) -> None:
    stub(tmp_path, trace())
    with pytest.raises(ResultsError, match=r"part-00000\.parquet of another run, whose run\.json was deleted; choose"):
        RunFolder.open(tmp_path, {"another": 1})
    (tmp_path / "scores" / "thesis.tex").write_text("mine")
    with pytest.raises(ResultsError, match="not a stagetrace run folder"):
        RunFolder.open(tmp_path, trace().description)
    assert (tmp_path / "scores" / "pretrain" / "part-00000.parquet").exists()


def test_a_trace_in_a_folder_in_use_is_refused_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, query, options = jobs.frozen()
    monkeypatch.setattr(sys.modules[trace.__module__], "describe", None)
    with RunFolder.open(tmp_path, {}), pytest.raises(ResultsError, match="in use"):
        trace(chain, query, out=tmp_path, **options)
