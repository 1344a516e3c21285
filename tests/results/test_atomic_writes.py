"""A crash at any moment: what stood there stays, nothing half-written is taken for a file."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

import stagetrace.results.solutions as solutions
from stagetrace.errors import ResultsError
from stagetrace.results import RunFolder, Trace
from stagetrace.results.files import atomic, run_files
from stagetrace.results.parts import split

MakeTrace = Callable[..., Trace]

pytestmark = pytest.mark.usefixtures("three_a_part")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Killed(BaseException):
    """The process ends here."""


def fail_at(call: int, real: Callable[..., object], error: BaseException) -> Callable[..., object]:
    """`real`, but its call number `call` raises after the bytes are out."""
    calls = 0

    def failing(*args: object, **settings: object) -> object:
        nonlocal calls
        calls += 1
        if calls > call:
            raise error
        return real(*args, **settings)

    return failing


def test_the_old_file_stays_if_the_writer_fails_half_way(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def half_way() -> None:
        with atomic(tmp_path / "a") as temporary:
            temporary.write_text("hal")
            raise Killed

    with pytest.raises(Killed):
        half_way()
    assert contents(tmp_path) == {"a": b"old"}


def test_the_old_file_stays_if_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "replace", fail_at(0, os.replace, OSError(28, "No space left on device")))
    with (
        pytest.raises(ResultsError, match=r"cannot write .*/a: No space left on device"),
        atomic(tmp_path / "a") as temp,
    ):
        temp.write_text("new")
    assert contents(tmp_path) == {"a": b"old"}


def test_the_bytes_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        events.append("sync")
        real_sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        events.append("replace")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    with atomic(tmp_path / "a") as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
    assert events == ["sync", "replace", "sync"]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    with atomic(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def killed_here(patch: pytest.MonkeyPatch) -> None:
    """A kill leaves no time to clean up."""
    for owner, name in ((Path, "unlink"), (Path, "rmdir"), (shutil, "rmtree")):
        patch.setattr(owner, name, lambda *_, **__: None)  # pyright: ignore


RENAMES = 14
"""Of a save of six files: each is written, run.json too, and then each is moved into its place."""


@pytest.mark.parametrize("call", range(RENAMES + 1))
def test_a_save_killed_at_any_rename_leaves_the_old_run_or_the_new_one(
    trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    old, new = trace(n=8), trace(n=7)
    new = replace(new, scores={**new.scores, "pretrain": replace(new["pretrain"], values=new["pretrain"].values + 1)})
    old.save(tmp_path / "run")
    before = contents(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at(call, os.replace, Killed()))
        killed_here(patch)
        if call < RENAMES:
            with pytest.raises(Killed):
                new.save(tmp_path / "run")
        else:
            new.save(tmp_path / "run")
    found = Trace.load(tmp_path / "run")
    assert torch.equal(found["pretrain"].values, (old if call < 7 else new)["pretrain"].values)
    if call < 7:
        assert contents(tmp_path / "run").items() >= before.items()
    again = RunFolder.open(tmp_path / "run", new.description, replacing=True)  # what the kill left is put right
    again.close()
    new.save(tmp_path / "new")
    assert contents(tmp_path / "run") == (before if call < 7 else contents(tmp_path / "new"))


@pytest.mark.parametrize("call", range(7))
def test_a_save_to_a_new_folder_killed_at_any_rename_leaves_nothing_that_could_be_read(
    trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at(call, os.replace, Killed()))
        killed_here(patch)
        with pytest.raises(Killed):
            trace(n=8).save(tmp_path / "run")
    with pytest.raises(ResultsError, match="not a stagetrace run folder"):
        Trace.load(tmp_path / "run")
    trace(n=8).save(tmp_path / "run")
    trace(n=8).save(tmp_path / "other")
    assert contents(tmp_path / "run") == contents(tmp_path / "other")


WRITERS = {"parquet": (pq, "write_table"), "adjoint": (solutions, "save_file"), "record": (Path, "write_text")}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_costs_nothing_that_was_there(
    trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    trace(n=8).save(tmp_path / "run")
    before = contents(tmp_path / "run")
    full = OSError(28, "No space left on device")
    module, name = WRITERS[writer]
    monkeypatch.setattr(module, name, fail_at(0 if writer == "record" else 1, getattr(module, name), full))
    with pytest.raises(ResultsError, match="No space left on device; make room"):
        trace(n=8).save(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    (tmp_path / "empty").mkdir()
    for place in ("new", "empty"):
        with pytest.raises(ResultsError, match="No space left"):
            trace(n=8).save(tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "run"]
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("call", range(3))
def test_a_run_on_a_full_disk_keeps_what_it_had_and_goes_on(
    trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, call: int
) -> None:
    made = trace(n=8)
    made.save(tmp_path / "saved")
    kept = 0
    with monkeypatch.context() as patch:
        module, name = WRITERS[writer]
        patch.setattr(module, name, fail_at(call, getattr(module, name), OSError(28, "No space left on device")))
        with suppress(ResultsError):
            written(tmp_path / "run", made)
    if (tmp_path / "run").exists():
        assert not [path for path in contents(tmp_path / "run") if path.endswith(".tmp")]
        kept = len(run_files(tmp_path / "run"))
    assert kept >= (call if writer == "parquet" else 0)
    written(tmp_path / "run", made)
    assert contents(tmp_path / "run") == contents(tmp_path / "saved")


def written(folder: Path, trace: Trace) -> None:
    """What a trace does with a folder."""
    with RunFolder.open(folder, trace.description) as run:
        if run.complete:
            return
        for stage in reversed(list(trace)):
            if run.solution(stage) is None:
                run.write_solution(stage, trace.solutions[stage])
            for number, part in enumerate(split(trace[stage])):
                if run.part(stage, number) is None:
                    run.write_part(stage, number, part)
        run.finish(trace.statistics)


@pytest.mark.parametrize("call", range(8))
def test_a_run_killed_at_any_rename_goes_on(
    trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    made = trace(n=8)
    made.save(tmp_path / "saved")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at(call, os.replace, Killed()))
        killed_here(patch)
        with pytest.raises(Killed):
            written(tmp_path / "run", made)
    assert len(run_files(tmp_path / "run")) == min(max(call - 1, 0), 6)  # run.json is the first and the last
    with pytest.raises(ResultsError, match=r"not finished|not a stagetrace run folder"):
        Trace.load(tmp_path / "run")
    written(tmp_path / "run", made)
    assert contents(tmp_path / "run") == contents(tmp_path / "saved")


def test_a_folder_that_cannot_be_written_is_a_results_error(trace: MakeTrace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="cannot write"):
        RunFolder.open(tmp_path / "file" / "run", {})
    with pytest.raises(ResultsError, match="cannot write"):
        trace().save(tmp_path / "file" / "run")
