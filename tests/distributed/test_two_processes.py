"""Several processes give what one gives: `torchrun` with gloo on this machine, nothing else changed."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from stagetrace import Trace, trace
from stagetrace.errors import StagetraceWarning
from tests import jobs
from tests.distributed import job

FILE = Path(__file__).with_name("job.py")


def alone(case: str) -> Trace:
    chain, query, options = job.CASES[case]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StagetraceWarning)
        return trace(chain, query, **options)


def assert_same(one: Trace, other: Trace, rtol: float = 1e-6) -> None:
    """Every stage's scores, both their parts, and those of tokens agree relatively to the stage's largest."""
    assert list(one) == list(other)
    assert list(one.tokens) == list(other.tokens)
    for name, ours in one.tokens.items():
        theirs = other.tokens[name]
        assert torch.equal(ours.index, theirs.index)
        assert torch.equal(ours.position, theirs.position)
        torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=rtol * float(theirs.values.abs().max()))
    for name in one:
        for what in ("values", "via_shared", "via_head"):
            ours, theirs = getattr(one[name], what), getattr(other[name], what)
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                assert bool(theirs.any()) or what != "values"
                atol = rtol * float(one[name].values.abs().max())
                # a matrix that was read from a folder is float32 whatever the model is
                torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=atol)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which two processes have traced every case."""
    out = tmp_path_factory.mktemp("two")
    ended = jobs.torchrun(
        2, "-m", "stagetrace", "score", f"{FILE}:every", "--out", str(out / "last"), STAGETRACE_TEST_OUT=str(out)
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("saved to") == 1, "only the first process prints"
    return out


@pytest.mark.parametrize("case", job.CASES)
def test_two_processes_give_the_scores_of_one(case: str, out: Path):
    assert_same(Trace.load(out / case), alone(case))


def test_the_command_line_gives_the_same_in_two_processes(out: Path):
    assert json.loads((out / "last" / "run.json").read_text())["statistics"]["processes"] == 2
    assert_same(Trace.load(out / "last"), alone("frozen"))


def test_one_process_finds_the_run_of_two_to_be_its_own(out: Path):
    """Fingerprints do not depend on the number of processes."""
    chain, query, options = job.CASES["three"]()
    before = (out / "three" / "run.json").read_bytes()
    again = trace(chain, query, out=out / "three", **options)
    assert (out / "three" / "run.json").read_bytes() == before
    assert_same(again, Trace.load(out / "three"), rtol=0)


@pytest.mark.slow
def test_two_processes_resume_a_run_of_which_one_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log, words = tmp_path / "log", ("-m", "stagetrace", "score", f"{jobs.FILE}:three", "--out", str(tmp_path / "run"))
    watched = {"STAGETRACE_TEST_LOG": str(log), "STAGETRACE_TEST_PART": "7"}
    ended = jobs.torchrun(2, *words, STAGETRACE_TEST_KILL="part 2 of pretrain", **watched)
    assert ended.returncode != 0
    done = log.read_text().splitlines()
    assert "part 2 of pretrain" in done
    assert "part 3 of pretrain" not in done
    with pytest.raises(Exception, match="not finished"):
        Trace.load(tmp_path / "run")

    log.write_text("")
    ended = jobs.torchrun(2, *words, **watched)
    assert ended.returncode == 0, ended.stderr
    assert log.read_text().splitlines() == [f"part {number} of pretrain" for number in (1, 2, 3, 4)], "the rest of six"
    monkeypatch.setattr("stagetrace.results.parts.PART_EXAMPLES", 7)
    chain, query, options = jobs.three()
    assert_same(Trace.load(tmp_path / "run"), trace(chain, query, **options))
