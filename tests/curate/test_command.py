"""`stagetrace curate`: what it prints and writes is the library's, and what it refuses leaves nothing behind."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from stagetrace import Trace, trace
from stagetrace.curate import Drop, DropAbove, KeepTop, curate, verify
from stagetrace.errors import StagetraceWarning
from stagetrace.validation import SGD, Steps
from tests import jobs
from tests.commands import Command, in_process

TARGET = f"{jobs.FILE}:frozen"
QUICK = "--retrain", "sgd:lr=0.05,steps=4,batch_size=8", "--processes", "1"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 37 and 23 examples."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StagetraceWarning)
        chain, query, options = jobs.frozen()
        trace(chain, query, **options, out=folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    frame = {"text": [f"t{i}" for i in range(37)], "label": [i % 3 for i in range(37)], "source": list("ab" * 18 + "a")}
    pd.DataFrame(frame).to_parquet(path, index=False)
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`stagetrace WORDS` in this process: its exit code, standard output and standard error."""
    yield from in_process(monkeypatch, capsys, 160)


def indices(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("--drop", "10%"), Drop(0.1)),
        (("--drop", "5"), Drop(5)),
        (("--drop-above", "-0.1"), DropAbove(-0.1)),
        (("--keep-top", "30"), KeepTop(30)),
        (("--keep-top", "50%"), KeepTop(0.5)),
    ],
)
def test_index_lists_are_the_librarys(command: Command, run: Path, tmp_path: Path, words: tuple[str, str], rule: Drop):
    code, out, err = command("curate", run, *words, "--out", tmp_path / "kept")
    assert code == 0, err
    curation = curate(run, rule=rule)
    assert indices(tmp_path / "kept" / "drop.txt") == list(curation.drop)
    assert indices(tmp_path / "kept" / "keep.txt") == list(curation.keep)
    assert f"drops {len(curation.drop)} of 37 examples" in out
    assert f"{curation.predicted:+.3e} (unit: query loss; negative = leaving them out helps)" in out
    note = (tmp_path / "kept" / "curation.md").read_text()
    assert f"stagetrace curate {run} {' '.join(words)} --out {tmp_path / 'kept'} --verify TARGET" in note


def test_classes_sources_and_a_filtered_copy(command: Command, run: Path, rows: Path, tmp_path: Path):
    words = "--stage", "pretrain", "--drop", "20%", "--data", rows, "--balance", "label", "--group", "source"
    code, out, err = command("curate", run, *words, "--out", tmp_path / "kept")
    assert code == 0, err
    frame = pd.read_parquet(rows)
    labels, sources = frame["label"].tolist(), frame["source"].tolist()
    curation = curate(run, rule=Drop(0.2), classes=labels, groups=sources)
    found = pd.read_parquet(tmp_path / "kept" / "data.parquet")
    assert found["original_index"].tolist() == list(curation.keep)
    assert found["text"].tolist() == [f"t{i}" for i in curation.keep]
    for group in curation.groups:
        assert f"{group.total:+.3e}" in out
        assert f"{group.removal_effect:+.3e}" in out
    assert "(scores: + harmful; effect of removal: - helps; unit: query loss)" in " ".join(out.split())
    assert [line.split()[1:3] for line in out.splitlines() if line.split()[:1] in (["0"], ["1"], ["2"])] == [
        [str(each.examples), str(each.dropped)] for each in curation.classes
    ]


@pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")
def test_the_check_is_the_librarys_and_resumes(command: Command, run: Path, tmp_path: Path):
    words = "curate", run, "--drop", "4", "--out", tmp_path / "kept", "--verify", TARGET, "--random", "2", "--seed", "5"
    code, out, err = command(*words, "--seeds", "2", *QUICK)
    assert code == 0, err
    chain, query, _ = jobs.frozen()
    fit = Steps(SGD(0.05), 4, 8)
    truth = verify(curate(run, rule=Drop(4)), chain, query, fit=fit, random=2, seed=5, seeds=range(2), processes=1)
    said = json.loads((tmp_path / "kept" / "curation.json").read_text())["verified"]
    assert said["true_change_of_each_run"] == truth.effects.tolist()
    sets = torch.tensor([each["true_change_of_each_run"] for each in said["random_sets"]], dtype=torch.float64)
    assert torch.equal(sets, truth.random_effects.mT)
    assert said["predicted_change"] == truth.predicted
    assert f"{truth.true:+.3e} true" in " ".join(out.split())
    assert set(said["fits"]) == {"pretrain", "finetune"}
    kept = (tmp_path / "kept" / "retrained" / "retrainings.jsonl").read_bytes()
    code, again, err = command(*words, "--seeds", "2", *QUICK)
    assert code == 0, err
    assert (tmp_path / "kept" / "retrained" / "retrainings.jsonl").read_bytes() == kept
    assert again == out


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no rule": ((), "type one of --drop, --drop-above and --keep-top, got none"),
    "two rules": (("--drop", "3", "--keep-top", "3"), "got 2 of them"),
    "a word": (("--drop", "some"), "--drop takes a share such as 10%"),
    "columns without data": (("--drop", "3", "--group", "source"), "--group reads the rows"),
    "copy without data": (("--drop", "3", "--format", "hf"), "--format reads the rows"),
    "split without data": (("--drop", "3", "--split", "train"), "--split reads the rows"),
    "no such column": (("--drop", "3", "--data", "ROWS", "--balance", "class"), "no column 'class'"),
    "balanced threshold": (("--drop-above", "0", "--data", "ROWS", "--balance", "label"), "cannot be balanced"),
    "other data": (("--stage", "finetune", "--drop", "3", "--data", "ROWS"), "37 rows, but stage 'finetune' has 23"),
    "no such stage": (("--stage", "x", "--drop", "3"), "no stage of that name"),
    "retraining without a check": (("--drop", "3", "--retrain", "sgd"), "are for --verify TARGET"),
    "another target": (("--drop", "3", "--verify", f"{jobs.FILE}:three"), "not what was traced"),
    "no target": (("--drop", "3", "--verify", "x.py:job"), "there is no file x.py"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_nothing(command: Command, run: Path, rows: Path, tmp_path: Path, name: str):
    words, message = REFUSED[name]
    given = [str(rows) if word == "ROWS" else word for word in words]
    code, _, err = command("curate", run, *given, "--out", tmp_path / "kept")
    assert code == 1
    assert message in " ".join(err.split())
    assert err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_no_run_and_no_out(command: Command, tmp_path: Path, run: Path):
    code, _, err = command("curate", tmp_path, "--drop", "3", "--out", tmp_path / "kept")
    assert code == 1
    assert "is not a stagetrace run folder" in err
    assert command("curate", run, "--drop", "3")[0] == 2
    code, _, err = command("curate", run, "--drop", "3", "--out", run)
    assert code == 1
    assert "holds something else" in err
    assert Trace.load(run)["pretrain"].n_examples == 37
