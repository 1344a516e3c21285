"""Token scores on disk: beside the scores, part by part, sealed, resumed, and read back as they were."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from stagetrace import Chain, Lanczos, Query, Stage, Trace, trace
from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.objectives import NextToken
from stagetrace.results import folder as folder_module
from stagetrace.results import parts as parts_module
from stagetrace.tracing import sieve
from tests import commands

HOW: dict[str, Any] = {"curvature": "identity", "solver": Lanczos(damping=0.0)}
PARTS = [f"tokens/fit/part-0000{number}.parquet" for number in range(2)]


def job(**settings: Any) -> tuple[Chain, Query, dict[str, Any]]:
    """A TARGET: eight sentences of four words."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6))
    data = torch.randint(6, (8, 4))
    stage = Stage("fit", model=model, objective=NextToken(), data=data, batch_size=2)
    return Chain(stage), Query(data[:1]), HOW | settings


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four examples, of which one at either end is whole."""
    monkeypatch.setattr(parts_module, "PART_EXAMPLES", 4)
    monkeypatch.setattr(sieve, "ENDS", 1)


def run(out: Path | None = None, tokens: int | bool = 5) -> Trace:
    chain, query, how = job()
    return trace(chain, query, tokens=tokens, out=out, **how)


def assert_same(one: Trace, other: Trace) -> None:
    for name in ("index", "position", "token", "values", "scored", "largest_left_out"):
        ours, theirs = (getattr(each.tokens["fit"], name) for each in (one, other))
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs)), name


def test_what_is_read_is_what_was_traced(tmp_path: Path):
    made = run(tmp_path / "run")
    assert made.tokens["fit"].kept < made.tokens["fit"].scored == 24
    assert_same(Trace.load(tmp_path / "run"), made)
    assert_same(run(tmp_path / "run"), made)  # a complete run is read
    run().save(tmp_path / "saved")
    assert_same(Trace.load(tmp_path / "saved"), made)
    for place in (tmp_path / "run", tmp_path / "saved"):
        table = pq.read_table(place / PARTS[0]).to_pandas()
        assert list(table.columns) == ["index", "position", "token", "score"]
        sums, scores = table.groupby("index")["score"].sum(), made["fit"].values[:4]
        assert sums.to_numpy() == pytest.approx(scores.numpy(), rel=1e-6, abs=1e-6 * float(scores.abs().max()))


def test_another_number_of_tokens_is_another_run(tmp_path: Path):
    run(tmp_path / "run")
    for other in (False, True):
        with pytest.raises(ResultsError, match=r"tokens"):
            run(tmp_path / "run", other)


@pytest.mark.parametrize("what", ["write_tokens", "write_part"])
def test_a_killed_run_ends_with_the_same_files(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run(tmp_path / "whole")
    real, calls = getattr(folder_module, what), list[object]()

    def killed(path: Path, *rest: object) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, what, killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    with pytest.raises(ResultsError, match="not finished"):
        Trace.load(tmp_path / "killed")
    run(tmp_path / "killed")
    for name in (*PARTS, "scores/fit/part-00001.parquet"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_files_that_are_damaged_missing_or_foreign_are_named(tmp_path: Path):
    run(tmp_path / "run")
    first, second = (tmp_path / "run" / name for name in PARTS[:2])
    whole, other = first.read_bytes(), second.read_bytes()
    spoilt = whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:]
    for content in (spoilt, other, b""):
        first.write_bytes(content)
        with pytest.raises(ResultsError, match=r"part-00000\.parquet"):
            Trace.load(tmp_path / "run")
    first.unlink()
    with pytest.raises(ResultsError, match=r"tokens/fit/part-00000\.parquet is missing"):
        Trace.load(tmp_path / "run")
    run(tmp_path / "run")  # computes it again
    assert first.read_bytes() == whole
    (tmp_path / "run" / "tokens/fit/part-00009.parquet").write_bytes(whole)
    with pytest.raises(ResultsError, match=r"part-00009\.parquet is no part of this run"):
        Trace.load(tmp_path / "run")


def test_the_accessor_refuses_what_is_not_there():
    tokens = run().tokens["fit"]
    with pytest.raises(DescriptionError, match="example 8 does not exist; type 0 to 7"):
        tokens[8]
    with pytest.raises(DescriptionError, match="there is no query 0"):
        tokens.top(1, query=0)
    with pytest.raises(DescriptionError, match="at least 1"):
        tokens.top(0)
    assert "tokens kept" in repr(tokens)


def test_the_command_line_scores_and_shows_tokens(tmp_path: Path):
    target = f"{__file__}:job"
    ended, printed, said = commands.stagetrace("score", target, "--out", tmp_path / "run", "--tokens", "--top", 2)
    assert ended == 0, said
    assert "fit: 2 most harmful tokens (24 of 24 tokens kept" in " ".join(printed.split())
    ended, printed, said = commands.stagetrace("show", tmp_path / "run", "--top", 1)
    assert (ended, said) == (0, "")
    assert "1 most helpful tokens" in " ".join(printed.split())
