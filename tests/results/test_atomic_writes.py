"""A crash at any moment: what stood there stays, nothing half-written is taken for a file."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stagetrace.results.adjoint as adjoint_module
import stagetrace.results.parquet as parquet_module
from stagetrace.errors import ResultsError
from stagetrace.results import RunFolder, Trace
from stagetrace.results.atomic import atomic
from stagetrace.results.part import split

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


@pytest.mark.parametrize("call", range(12))
def test_a_save_killed_at_any_rename_never_shows_a_wrong_run(
    trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    old, new = trace(n=8), trace(n=8)
    new = replace(new, scores={**new.scores, "pretrain": replace(new["pretrain"], values=new["pretrain"].values + 1)})
    old.save(tmp_path / "run")
    before = contents(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at(call, os.replace, Killed()))
        with pytest.raises(Killed):
            new.save(tmp_path / "run")
    # six files are staged, then run.json says running
    if call < 7:
        assert contents(tmp_path / "run") == before
    else:
        with pytest.raises(ResultsError, match="not finished"):
            Trace.load(tmp_path / "run")
    assert not [path for path in contents(tmp_path / "run") if ".tmp" in path or ".saving" in path]
    new.save(tmp_path / "run")
    assert torch.equal(Trace.load(tmp_path / "run")["pretrain"].values, new["pretrain"].values)


@pytest.mark.parametrize(
    ("module", "writer"),
    [(parquet_module.pq, "write_table"), (adjoint_module, "save_file")],
    ids=["parquet", "adjoint"],
)
def test_a_full_disk_costs_nothing_that_was_there(
    trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, writer: str
) -> None:
    trace(n=8).save(tmp_path / "run")
    before = contents(tmp_path / "run")
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(module, writer, fail_at(1, getattr(module, writer), full))
    with pytest.raises(ResultsError, match="No space left on device; make room"):
        trace(n=8).save(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    with pytest.raises(ResultsError, match="No space left"):
        trace(n=8).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_part_killed_half_way_is_not_a_part(
    trace: MakeTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.open(tmp_path, {})
    part = next(split(trace(n=8)["pretrain"]))
    # a kill leaves no time to clean up
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at(0, os.replace, Killed()))
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # pyright: ignore
        with pytest.raises(Killed):
            run.keep_part("pretrain", 0, part)
    assert [path for path in contents(tmp_path) if path.endswith(".tmp")]
    assert run.parts("pretrain") == {}
    again = RunFolder.open(tmp_path, {})
    assert list(contents(tmp_path)) == ["run.json"]
    again.keep_part("pretrain", 0, part)
    assert list(again.parts("pretrain")) == [0]


def test_a_folder_that_cannot_be_written_is_a_results_error(trace: MakeTrace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResultsError, match="cannot write"):
        RunFolder.open(tmp_path / "file" / "run", {})
    with pytest.raises(ResultsError, match="cannot write"):
        trace().save(tmp_path / "file" / "run")
