"""Corpora as they lie on disk: the same rows in every form, however they are read, and the same scores."""

import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from stagetrace import Chain, hf, trace
from stagetrace.corpora import Jsonl, ParquetShards, Stream
from stagetrace.errors import DataError, DescriptionError, ResultsError
from stagetrace.stages.own_ids import ids_of
from tests.corpora.files import KINDS, ROWS, plain
from tests.hf import tiny

kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_every_form_gives_the_same_rows_in_any_order(kind: str, tmp_path: Path):
    data = KINDS[kind](tmp_path)
    assert len(data) == len(ROWS)
    assert [plain(data[index]) for index in range(len(data))] == ROWS
    order = random.Random(0).choices(range(len(ROWS)), k=60)
    assert [plain(data[index]) for index in order] == [ROWS[index] for index in order]
    assert plain(data[-1]) == ROWS[-1]
    with pytest.raises(IndexError, match=rf"{re.escape(str(tmp_path))}.*: there is no example {len(ROWS)}; there are"):
        data[len(ROWS)]
    with pytest.raises(DescriptionError, match=rf"{re.escape(str(tmp_path))}.*not as a slice; type \[rows\[i\]"):
        data[1:3]
    assert plain(data[np.int64(1)]) == ROWS[1]
    assert [plain(row) for row in data] == ROWS
    ids, notice = ids_of(data, None, "stage 'fit'")
    assert (list(ids or ()), notice) == ([row["id"] for row in ROWS], None)
    again = pickle.loads(pickle.dumps(data))
    assert plain(again[7]) == ROWS[7]


@kinds
def test_forked_workers_do_not_disturb_each_other(kind: str, tmp_path: Path):
    data = KINDS[kind](tmp_path)
    data[0]  # opened before the fork
    loader = DataLoader(data, batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    found = [plain(row) for _ in range(2) for batch in loader for row in batch]
    assert found == [*ROWS, *ROWS]


@pytest.mark.parametrize("kind", ["jsonl", pytest.param("stream of datasets", marks=pytest.mark.slow)])
def test_scores_are_those_of_a_list(kind: str, tmp_path: Path):
    model = tiny.model("BertForSequenceClassification", num_labels=3)
    rows = [{**row, "text": tiny.TEXTS[place % 8]} for place, row in enumerate(ROWS)]
    rows = [{name: row[name] for name in ("id", "text", "label")} for row in rows]

    def scores(data: Any) -> Any:
        stage = hf.stage("fit", model, data, tokenizer=tiny.tokenizer(), batch_size=4)
        return trace(Chain(stage), hf.query(rows[:2], stage=stage), curvature="identity")["fit"]

    (tmp_path / "a").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.corpora.files.ROWS", rows)
        patch.setattr("tests.corpora.files.shards", lambda: [rows[:4], rows[4:5], rows[5:]])
        data = KINDS[kind](tmp_path / "a") if kind != "stream of datasets" else hf_rows(rows, tmp_path)
    found, expected = scores(data), scores(rows)
    assert torch.equal(found.values, expected.values)
    assert found.ids == expected.ids


def hf_rows(rows: list[dict[str, Any]], folder: Path) -> Stream:
    return Stream(datasets.Dataset.from_list(rows).to_iterable_dataset(), spill=folder / "kept")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_a_file_that_changes_is_noticed(kind: str, tmp_path: Path):
    data = KINDS[kind](tmp_path)
    data[0]
    path = tmp_path / f"2.{kind}"
    content = path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=f"2.{kind} was written while it was in use"):
        data[8]
    path.unlink()
    with pytest.raises(DataError, match=f"2.{kind}"):
        pickle.loads(pickle.dumps(data))[8]


def test_places_name_file_and_line(tmp_path: Path):
    assert KINDS["jsonl"](tmp_path).place(6) == f"{tmp_path / '2.jsonl'}, line 3"
    assert KINDS["parquet"](tmp_path).place(6) == f"{tmp_path / '2.parquet'}, row 1"
    assert KINDS["tar"](tmp_path).place(6) == f"{tmp_path / '2.tar'}, doc-6"


def test_a_stream_is_read_once_and_found_again(tmp_path: Path):
    reads = list[int]()

    def rows(first: int = 0) -> Any:
        for number in range(first, 100):
            reads.append(number)
            yield {"n": number}

    kept = Stream(rows(), length=50, spill=tmp_path / "kept")
    assert (len(kept), kept[49], reads) == (50, {"n": 49}, list(range(50)))
    reads.clear()
    assert Stream(rows(), length=50, spill=tmp_path / "kept")[3] == {"n": 3}
    assert reads == list(range(16))
    with pytest.raises(ResultsError, match="rows of another stream"):
        Stream(rows(1), length=50, spill=tmp_path / "kept")
    with pytest.raises(ResultsError, match="another number of rows"):
        Stream(rows(), spill=tmp_path / "kept")
    with pytest.raises(DataError, match="ended after 100 rows, and length=101"):
        Stream(rows(), length=101, spill=tmp_path / "short")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_streams_and_names_of_files_are_told_what_to_type(tmp_path: Path):
    model = tiny.model("BertForSequenceClassification", num_labels=3)
    streamed = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(DescriptionError, match=r"stagetrace\.corpora\.Stream\(data, length=n, spill='FOLDER'\)"):
        hf.stage("fit", model, streamed, tokenizer=tiny.tokenizer())
    with pytest.raises(DescriptionError, match=r"type stagetrace\.corpora\.Jsonl\('corpus/\*\.jsonl'\)"):
        hf.stage("fit", model, "corpus/*.jsonl", tokenizer=tiny.tokenizer())
    assert isinstance(KINDS["jsonl"](tmp_path), Jsonl)


def test_long_lines_are_fetched_a_few_at_a_time(tmp_path: Path):
    path = tmp_path / "long.jsonl"
    path.write_text("".join(f'{{"text": "{letter * 600_000}"}}\n' for letter in "abcdef"))
    data = Jsonl(path)
    assert [data[index]["text"][0] for index in range(6)] == list("abcdef")
    assert max(len(data[index]["text"]) for index in (0, 5)) == 600_000
    data[0]
    assert len(data._held) == 1  # pyright: ignore[reportPrivateUsage]  # two would be more than a mebibyte


def test_a_large_row_group_is_read_in_pieces(tmp_path: Path):
    pq.write_table(pa.table({"n": range(300)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": range(300, 500)}), tmp_path / "b.parquet", row_group_size=100)
    data = ParquetShards(tmp_path / "*.parquet")
    order = random.Random(0).choices(range(500), k=200)
    assert [data[index]["n"] for index in [*range(500), *order]] == [*range(500), *order]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"id": 1}, {"id": 2.5}], "'id' of row 0 is 1 and would be kept as 1.0"),
        ([{"m": {"a": 1}}, {"m": {"b": 2}}], "'m' of row 0"),
        ([{"m": [{"role": "user"}]}, {"m": [{"role": "user", "name": "x"}]}], "'m' of row 0"),
    ],
)
def test_a_stream_whose_rows_would_come_back_as_others_is_refused(rows: list[Any], named: str, tmp_path: Path):
    with pytest.raises(DataError, match=re.escape(named)):
        Stream(iter(rows), spill=tmp_path / "kept")
    assert not list(tmp_path.iterdir())


def test_a_stream_gives_back_what_it_was_given(tmp_path: Path):
    rows = [
        {"x": [1, 2], "y": float("nan"), "z": None, "m": {"a": "b"}},
        {"x": [], "y": 0.5, "z": "t", "m": {"a": None}},
    ]
    stream = Stream(iter(rows), spill=tmp_path / "kept")
    assert repr([stream[index] for index in range(len(stream))]) == repr(rows)
