"""A corpus that the target filtered, or put in another order: rows and examples are brought together by their ids."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from stagetrace.curate import Drop, curate, matched, read_rows
from stagetrace.errors import DataError, DescriptionError
from stagetrace.results import Scores, Trace
from stagetrace.stages.ids import Ids
from tests.commands import Command, in_process

TRACED = ["e", "a", "d", "b"]
"""Four of the corpus's six documents, in an order of the target's own."""

SCORES = [0.5, -2.0, 1.0, 0.1]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    yield from in_process(monkeypatch, capsys, 160)


def a_run(folder: Path, ids: Ids | None) -> Path:
    Trace({"fit": Scores("fit", torch.tensor(SCORES).double(), ids=ids)}).save(folder)
    return folder


def corpus(path: Path, column: str = "id") -> Path:
    frame = pd.DataFrame(
        {column: list("abcdef"), "text": [f"text {name}" for name in "abcdef"], "source": list("xyxyxy")}
    )
    frame.to_json(path, orient="records", lines=True) if path.suffix == ".jsonl" else frame.to_parquet(path)
    return path


@pytest.mark.parametrize(
    ("name", "column"), [("corpus.parquet", "id"), ("corpus.jsonl", "id"), ("corpus.parquet", "url")]
)
def test_the_rows_that_stay_are_those_of_the_ids(name: str, column: str, tmp_path: Path, command: Command):
    run, data = a_run(tmp_path / "run", Ids(TRACED)), corpus(tmp_path / name, column)
    named = () if column == "id" else ("--ids", column)
    words = "--drop", "2", "--data", str(data), *named, "--group", "source", "--out", str(tmp_path / "kept")
    code, printed, error = command("curate", str(run), *words)
    assert (code, error) == (0, "")
    assert (tmp_path / "kept" / "drop-ids.txt").read_text().split() == ["e", "d"]  # the largest scores
    kept = pq.read_table(tmp_path / "kept" / "data.parquet").to_pydict()
    assert kept[column] == ["a", "b"]
    assert kept["text"] == ["text a", "text b"]
    assert kept["original_index"] == [1, 3]
    assert pq.read_table(tmp_path / "kept" / "keep.parquet")["id"].to_pylist() == ["a", "b"]
    assert "2 rows that are no example of the stage were left out" in (tmp_path / "kept" / "curation.md").read_text()
    curation = curate(run, rule=Drop(2), groups=["x", "x", "y", "y"])  # e, a are of x; d, b of y
    assert {group.name: group.total for group in curation.groups} == pytest.approx({"x": -1.5, "y": 1.1})
    assert all(f"{group.total:+.3e}" in printed for group in curation.groups)


def test_texts_that_look_like_times_or_numbers_stay_texts(tmp_path: Path):
    ids = ["2024-01-02T10:00:00Z", "2024-01-02 10:00:00", "2024-01-02"]  # the first two are one moment
    rows = [{"id": name, "nested": {"days": [name, "2024-01-02"]}, "n": f"00{at}"} for at, name in enumerate(ids)]
    (tmp_path / "corpus.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    scores = Scores("fit", torch.tensor([1.0, 2.0]).double(), ids=Ids([ids[2], ids[0]]))
    found = matched(read_rows(tmp_path / "corpus.jsonl"), scores)
    curate(Trace({"fit": scores}), rule=Drop(1)).write(tmp_path / "kept", found)
    assert pq.read_table(tmp_path / "kept" / "data.parquet").to_pylist() == [{**rows[2], "original_index": 0}]
    assert found.column("nested") == [rows[2]["nested"], rows[0]["nested"]]
    (tmp_path / "folder").mkdir()
    (tmp_path / "corpus.jsonl").rename(tmp_path / "folder" / "train.jsonl")
    with pytest.raises(DescriptionError, match=r"datasets takes the texts of column 'id' for times.*that jsonl file"):
        read_rows(tmp_path / "folder")


def test_rows_that_cannot_be_found_are_refused(tmp_path: Path, command: Command):
    run, data = a_run(tmp_path / "run", Ids(["e", "a", "zebra", "b"])), corpus(tmp_path / "corpus.parquet")
    code, _, error = command("curate", str(run), "--drop", "2", "--data", str(data), "--out", str(tmp_path / "kept"))
    assert code == 1
    assert "1 of the 4 examples" in error
    assert "'zebra'" in error
    assert not (tmp_path / "kept").exists()
    scores = Trace.load(a_run(tmp_path / "nameless", None))["fit"]
    with pytest.raises(DescriptionError, match="have no ids to look up in column 'id'"):
        matched(read_rows(data), scores, "id")
    with pytest.raises(DescriptionError, match="by which rows of a larger corpus are found"):
        curate(Trace({"fit": scores}), rule=Drop(1)).write(tmp_path / "kept", read_rows(data))
    twice = pd.DataFrame({"id": list("abdde"), "text": list("abdde")})
    twice.to_parquet(tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="examples 2 and 3 have the same id 'd'"):
        matched(read_rows(tmp_path / "twice.parquet"), Scores("fit", torch.zeros(4).double(), ids=Ids(TRACED)))
