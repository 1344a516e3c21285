"""The folder of a curation: what is in it, and that it is there whole or not at all."""

import json
import os
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import stagetrace.results.files as files
from stagetrace.curate import Curation, Drop, Rows, curate
from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.results import SIGN
from tests.curate.traces import traced

SCORES = (0.5, -2.0, 1.0, 0.5, -0.25, 0.5, 3.0, 0.0)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    pd.DataFrame({"text": list("abcdefgh")}).to_parquet(tmp_path / "rows.parquet", index=False)
    return Rows("rows.parquet", pq.read_table(tmp_path / "rows.parquet"))


def made(rule: Drop | None = None) -> Curation:
    return curate(traced(SCORES), rule=rule or Drop(2), classes=list("xyxyxyxy"), groups=list("aaaabbbb"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_index_lists(tmp_path: Path):
    curation = made(Drop(3))
    files = curation.write(tmp_path / "out")
    assert set(files) == set((tmp_path / "out").iterdir())
    assert files[0].name == "curation.md"
    for name, indices in (("keep", curation.keep), ("drop", curation.drop)):
        assert [int(line) for line in (tmp_path / "out" / f"{name}.txt").read_text().split()] == list(indices)
        table = pq.read_table(tmp_path / "out" / f"{name}.parquet")
        assert [str(kind) for kind in table.schema.types] == ["int64", "double", "double"]
        assert table.to_pylist() == [
            {"index": i, "score": SCORES[i], "removal_effect": -SCORES[i] / 8} for i in indices
        ]
        assert table.schema.metadata == {b"stage": b"pretrain", b"sign": SIGN.encode(), b"units": b"query loss"}


@pytest.mark.parametrize("as_", ["indices", "parquet", "hf"])
def test_the_filtered_copy(tmp_path: Path, rows: Rows, as_: str):
    curation = made()
    curation.write(tmp_path / "out", rows, as_)  # pyright: ignore[reportArgumentType]
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert ("data.parquet" in there, "data" in there) == (as_ == "parquet", as_ == "hf")
    if as_ == "parquet":
        found = pd.read_parquet(tmp_path / "out" / "data.parquet")
        assert list(found["original_index"]) == list(curation.keep)
        assert list(found["text"]) == ["abcdefgh"[i] for i in curation.keep]


def test_the_record_and_the_note(tmp_path: Path, rows: Rows):
    curation = made(Drop(7))
    curation.write(tmp_path / "out", rows)
    record = json.loads((tmp_path / "out" / "curation.json").read_text())
    assert record["sign"] == SIGN
    assert (record["kept"], record["dropped"], record["helpful_dropped"]) == (
        1,
        7,
        sum(SCORES[i] < 0 for i in curation.drop),
    )
    assert record["predicted_change"] == curation.predicted
    assert record["of"]["run"]["query"]["data"]["sha256"] == "f00d" * 16
    assert [(g["name"], g["total"]) for g in record["groups"]] == [(g.name, g.total) for g in curation.groups]
    note = (tmp_path / "out" / "curation.md").read_text()
    for words in (
        "`--drop 7` drops 7 of 8 examples (87.5 %) and keeps 1, the same share of each of 2 classes.",
        f"without them: {curation.predicted:+.3e} (unit: query loss; negative = leaving them out helps)",
        f"\n{curation.helpful_dropped} of the dropped examples have a negative score",
        "first order",
        "for the query that was traced",
        f"data sha256 {'f00d' * 4}",
        "stagetrace validate TARGET --stage pretrain --groups 0.875 --out DIR",
        SIGN,
    ):
        assert words in note


def test_the_same_curation_is_written_again_and_what_lies_beside_stays(tmp_path: Path, rows: Rows):
    made().write(tmp_path / "out", rows)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "retrained").mkdir()
    (tmp_path / "out" / "retrained" / "a").write_text("kept")
    (tmp_path / "out" / "data.parquet").unlink()
    made().write(tmp_path / "out", rows)
    assert contents(tmp_path / "out") == {**before, "retrained/a": b"kept"}


def test_an_empty_folder_is_taken(tmp_path: Path):
    (tmp_path / "out").mkdir()
    made().write(tmp_path / "out")
    assert (tmp_path / "out" / "curation.json").exists()


def test_what_is_refused_is_left_alone(tmp_path: Path, rows: Rows):
    made().write(tmp_path / "other")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.txt").write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "curation.json").write_text("[")
    before = contents(tmp_path)
    for out, curation, words in (
        ("other", made(Drop(4)), r"of\.|rule: \"--drop 2\" -> \"--drop 4\""),
        ("other", curate(traced(SCORES, alpha=1), rule=Drop(2), classes=list("xyxyxyxy")), r"run\.alpha"),
        ("foreign", made(), "holds something else"),
        ("foreign/a.txt", made(), "is a file"),
        ("damaged", made(), "cannot be read"),
    ):
        with pytest.raises(ResultsError, match=words):
            curation.write(tmp_path / out)
    short = Rows("short.parquet", rows.data.slice(0, 5))
    with pytest.raises(DescriptionError, match=r"short\.parquet has 5 rows, but stage 'pretrain' has 8 examples"):
        made().write(tmp_path / "new", short)
    with pytest.raises(DescriptionError, match="needs the data"):
        made().write(tmp_path / "new", as_="hf")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("at", range(8))
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch, at: int):
    """The disk is full at the at-th file, or at the move of the folder."""
    calls, replace = [0], os.replace

    def failing(*paths: object) -> None:
        calls[0] += 1
        if calls[0] == at + 1:
            raise OSError(28, "No space left on device")
        replace(*paths)  # pyright: ignore

    def patched(path: Path, target: Path) -> Path:
        failing(path, target)
        return Path(target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", patched)
        with pytest.raises(ResultsError, match="No space left on device; make room"):
            made().write(tmp_path / "out", rows)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.parquet"}
    made().write(tmp_path / "out", rows)


def test_what_a_killed_write_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "move", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            made().write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out.saving"]
    made().write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
