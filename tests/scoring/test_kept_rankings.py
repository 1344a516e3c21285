"""Rankings in a folder, and the command that writes them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from stagetrace import Chain, Query, Trace
from stagetrace.errors import DataError, ResultsError
from stagetrace.results import Ranking, read_rankings
from stagetrace.tracing import rank, trace
from tests import jobs
from tests.commands import Command, in_process

pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning")  # the jobs' models are drawn

TARGET = f"{jobs.FILE}:frozen"
KEPT = 4


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    yield from in_process(monkeypatch, capsys, 120)


def job() -> tuple[Chain, Query, Mapping[str, Any]]:
    chain, query, options = jobs.frozen()
    return chain, replace(query, reduction="none"), options


def ranked(out: Path, top: int = KEPT) -> dict[str, Ranking]:
    chain, query, options = job()
    return rank(chain, query, top=top, curvature=options.get("curvature"), solver=options.get("solver"), out=out)


def test_what_is_read_is_what_was_found_and_both_are_ends_of_the_matrix(tmp_path: Path):
    found, read = ranked(tmp_path / "a"), read_rankings(tmp_path / "a")
    chain, query, options = job()
    whole: Trace = trace(chain, query, **options)
    assert list(read) == list(found) == ["pretrain", "finetune"]
    for stage, ranking in read.items():
        for name in ("harmful", "harmful_scores", "helpful", "helpful_scores"):
            assert torch.equal(getattr(ranking, name), getattr(found[stage], name))
        mine, theirs = ranking.solution, found[stage].solution
        assert mine is not None
        assert theirs is not None
        assert (mine.system, mine.relative_residuals) == (theirs.system, theirs.relative_residuals)
        torch.testing.assert_close(ranking.harmful_scores, whole[stage].values.topk(KEPT, dim=1).values)
        rows = pq.read_table(tmp_path / "a" / "rankings" / f"{stage}.parquet").to_pydict()
        of_query = [place for place, asked in enumerate(rows["query"]) if asked == 2]
        assert [rows["place"][place] for place in of_query] == [1, 2, 3, 4] * 2
        assert [rows["harmful"][place] for place in of_query] == [True] * 4 + [False] * 4
        for place in of_query:
            score, index = rows["score"][place], rows["index"][place]
            assert score == pytest.approx(float(whole[stage].values[2, index]))
            assert rows["removal_effect"][place] == pytest.approx(float(whole[stage].removal_effect[2, index]))


def test_the_same_again_is_read_and_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = ranked(tmp_path / "a")

    def refused(*given: object) -> None:
        raise DataError("computed again")

    monkeypatch.setattr("stagetrace.tracing.ranking._ranked", refused)
    assert torch.equal(ranked(tmp_path / "a")["pretrain"].helpful, first["pretrain"].helpful)
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    with pytest.raises(ResultsError, match="top: 4 -> 5"):
        ranked(tmp_path / "a", top=5)
    with pytest.raises(DataError, match="computed again"):
        ranked(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert {path: path.read_bytes() for path in before} == before


def with_another_number(path: Path) -> None:
    """The file rewritten, in order, with one number changed."""
    if path.suffix == ".json":
        path.write_text(path.read_text().replace('"top": 4', '"top": 5'))
        return
    table = pq.read_table(path)
    place = table.schema.get_field_index("score")
    scores = table["score"].to_numpy() + 1.0
    pq.write_table(table.set_column(place, "score", [scores]), path)


@pytest.mark.parametrize("name", ["ranking.json", "rankings/pretrain.parquet"])
def test_a_file_that_was_edited_is_refused_by_its_name(tmp_path: Path, name: str):
    ranked(tmp_path / "a")
    with_another_number(tmp_path / "a" / name)
    with pytest.raises(ResultsError, match=rf"{Path(name).name} .*damaged"):
        read_rankings(tmp_path / "a")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultsError, match=r"holds something else \(no ranking.json"):
        ranked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_ranks_for_each_example_of_the_query_and_show_shows_one(tmp_path: Path, command: Command):
    out = tmp_path / "a"
    code, said, _ = command("rank", TARGET, "--out", out, "--keep", 3, "--top", 2)
    assert code == 0
    assert "pretrain: 3 kept at either end, 6 queries" in said
    best = read_rankings(out)["finetune"].harmful[4].tolist()
    code, said, _ = command("show", out, "--query", 4, "--stage", "finetune")
    assert code == 0
    assert [int(line.split()[0]) for line in said.splitlines() if line[:8].strip().isdigit()][:3] == best
    code, _, err = command("show", out, "--query", 99)
    assert code == 1
    assert "query 99 does not exist; type 0 to 5" in err
