"""Any number of processes gives the same numbers and ends with the same message; forks of this process, in a moment."""

import os
import re
import signal
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

from stagetrace import EKFAC, Chain, Direct, Frozen, GaussNewton, Lanczos, Query, Shift, Stage, trace
from stagetrace.checks.lookout import Lookout
from stagetrace.curvature import Auto
from stagetrace.curvature.factor import gauss_newton_factor
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.errors import ProcessError, StagetraceWarning
from stagetrace.objectives import Classification
from stagetrace.parallel import World, started, world
from stagetrace.tracing import rank as ranked
from stagetrace.tracing import score as scoring
from tests import jobs
from tests.cases import slow_but
from tests.distributed.forks import Outcome, forked

Found = dict[str, Tensor]


@contextmanager
def quiet() -> Generator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StagetraceWarning)
        yield


def many(n: int = 12) -> Query:
    return Query(jobs.examples(n, 9), batch_size=4, reduction="none")


def single(n: int = 6) -> Query:
    return Query(jobs.examples(n, 9), batch_size=4)


def kept(*sizes: int) -> Chain:
    return jobs.chain(Frozen("embedding"), sizes=sizes)


def scores(chain: Chain, query: Query, **options: Any) -> Found:
    found = trace(chain, query, **options)
    return {name: found[name].values.clone() for name in found}


def ends(chain: Chain, query: Query) -> Found:
    found = ranked(chain, query, top=4, solver=Lanczos(0.1))
    return {f"{name} {end}": getattr(found[name], end) for name in found for end in ("harmful", "helpful")}


def single_precision() -> Found:
    chain, query = jobs.single_precision()
    return scores(chain, query, curvature=GaussNewton(), solver=Lanczos(0.1, rtol=1e-6))


SHARED = {"curvature": GaussNewton(), "solver": Lanczos(0.05, 1e-2, filter=Shift, many="shared basis")}
ROWS = {"curvature": GaussNewton(), "solver": Lanczos(0.05, 1e-2, filter=Shift, many="sample space")}

CASES: dict[str, tuple[Callable[[], Found], float]] = {
    "by default, part of the examples": (lambda: scores(kept(11, 7), single(), curvature=Auto(examples=5)), 1e-10),
    "two examples on three processes": (lambda: scores(kept(2, 2), single(1), solver=Lanczos(0.1)), 1e-10),
    "one shared basis": (lambda: scores(kept(11, 7), many(), **SHARED), 1e-10),
    "the space of the examples": (lambda: scores(kept(11, 7), many(), **ROWS), 1e-10),
    "EK-FAC, nothing exact": (
        lambda: scores(kept(11, 7), many(), curvature=EKFAC(exact=0), solver=Direct(0.05, Shift)),
        1e-10,
    ),
    "the ends of the ranking": (lambda: ends(kept(11, 7), many(3)), 0.0),
    "single precision": (single_precision, 1e-6),
}


QUICK = ("the space of the examples", "two examples on three processes")


@pytest.mark.parametrize("case", slow_but(CASES, *QUICK))
@pytest.mark.parametrize("ranks", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_the_number_of_processes_changes_nothing(case: str, ranks: int):
    run, rtol = CASES[case]

    def quietly(rank: int = 0) -> Found:
        with quiet():
            return run()

    alone = quietly()
    for outcome in forked(ranks, quietly):
        assert outcome.error is None
        for what, values in alone.items():
            found, wanted = outcome.value[what].double(), values.double()
            assert bool(wanted.any())
            torch.testing.assert_close(found, wanted, rtol=0, atol=rtol * float(wanted.abs().max()))


def test_the_work_on_rows_is_shared_out():
    """Each process makes its examples' rows, and multiplies its rows' part of the Gram matrix."""
    bound = kept(37, 23).bound_stages[0]

    def work(rank: int) -> tuple[int, Tensor]:
        mine = world().shard(range(37))
        factor = gauss_newton_factor(bound.risk, range(37), mine, 1.0)
        assert not isinstance(factor, str)
        rows = factor.rows(torch.ones(bound.trained.size).double(), 0.0, 1.0, 2**20)
        assert rows is not None
        rows = rows.sorted(0.0)  # processes put theirs below one another
        here = rows.shares.mine(len(rows.matrix))
        return here.stop - here.start, rows.shares.joined(rows.matrix[here])

    (one, whole), *_ = [work(0)]
    found = [outcome.value for outcome in forked(3, work)]
    assert sum(rows for rows, _ in found) == one
    for _, joined in found:
        torch.testing.assert_close(joined, whole)


# What goes wrong on one of them


def refused(chain: Chain, rank: int, break_it: Callable[[], None] = lambda: None, **options: Any) -> None:
    if rank == 1:
        break_it()
    with quiet():
        trace(chain, single(), solver=Lanczos(0.1), **options)


def test_an_example_that_one_process_alone_reads_ends_all_with_its_message():
    chain = kept(37, 23)
    looked_at = Lookout.over(chain.stages[0].examples).together
    place = max(set(range(37)) - set(looked_at))  # the last process's, and not among those that are checked
    assert place >= 25
    chain.stages[0].data.tensors[0][place] = float("inf")
    for outcome in forked(3, lambda rank: refused(chain, rank, of="pretrain")):
        assert outcome.kind == "DataError"
        assert f"stage 'pretrain': the loss of example {place} is nan" in (outcome.error or "")


def test_a_bug_in_one_process_ends_all():
    def bug(self: MeanCurvature) -> Any:
        raise KeyError("lost")

    def break_it() -> None:
        MeanCurvature._products = bug  # in this fork alone

    outcomes = forked(2, lambda rank: refused(kept(37, 23), rank, break_it))
    assert outcomes[1].kind == "KeyError"
    assert outcomes[0].kind == "ProcessError"
    assert "process 1 failed (KeyError" in (outcomes[0].error or "")
    assert outcomes[0].raised_by == 1


def test_a_killed_process_ends_the_others_within_seconds():
    killed = time.perf_counter()

    def work(rank: int) -> float:
        refused(kept(37, 23), rank, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return time.perf_counter() - killed

    outcomes = forked(3, work, seconds=20.0)
    assert outcomes[1].exit == -signal.SIGKILL
    for outcome in (outcomes[0], outcomes[2]):
        assert outcome.kind == "ProcessError"
        assert "no longer answers" in (outcome.error or "")
        assert "on any number of processes" in (outcome.error or "")


def test_a_folder_that_cannot_be_written_ends_all(tmp_path: Path):
    (tmp_path / "run").write_text("no folder")
    for outcome in forked(2, lambda rank: refused(kept(7, 5), rank, out=tmp_path / "run")):
        assert outcome.kind == "ResultsError"


def weighing(weight: float) -> Callable[[Any, Any], Tensor]:
    """A loss that holds a number in a closure."""
    return lambda model, batch: weight * torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def differing(what: str) -> list[Outcome]:
    def work(rank: int) -> None:
        model = jobs.Net(rank if what == "weights" else 0)
        if what == "attribute":
            model.scale = float(rank)  # pyright: ignore[reportArgumentType]
        model.embedding.bias.requires_grad_(what != "trained" or rank == 0)
        data = jobs.examples(40, rank if what == "data" else 0)
        if what == "order":
            data = Subset(data, [0, *([*range(19, 0, -1)] if rank else range(1, 20)), *range(20, 40)])
        losses: Any = weighing(1.0 + rank) if what == "closure" else Classification()
        asked = Query(jobs.examples(6, 9), objective=weighing(1.0 + rank)) if what == "query" else single()
        stage = Stage("fit", model=model, objective=losses, data=data)
        with quiet():
            trace(Chain(stage), asked, solver=Lanczos(0.1 + rank if what == "damping" else 0.1))

    return forked(2, work)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weights", "stage 'fit': the value of a parameter or buffer differs"),
        ("attribute", "stage 'fit': the model's class, code or attributes differs"),
        ("trained", "stage 'fit': which parameters are trained differs"),
        ("closure", "stage 'fit': the objective differs"),
        ("query", "the query's objective differs"),
        ("data", "stage 'fit': example 0 differs"),
        ("order", r"stage 'fit': example \d+ differs"),
        ("damping", "solver differs"),
    ],
)
def test_processes_with_different_jobs_are_refused(what: str, words: str):
    for outcome in differing(what):
        assert outcome.kind == "DescriptionError"
        assert re.search(f"process 1 was given another job than process 0: {words}", outcome.error or "")


def test_what_cannot_be_compared_is_said():
    def work(rank: int) -> list[str]:
        stream = iter([rank])

        def loss(model: Any, batch: Any) -> Tensor:
            assert stream is not None
            return weighing(1.0)(model, batch)

        stage = Stage("fit", model=jobs.Net(0), objective=loss, data=jobs.examples(9, 0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trace(Chain(stage), single(), solver=Lanczos(0.1))
        return [str(each.message) for each in caught]

    first, _ = forked(2, work)
    assert any("not known of stage 'fit': the objective" in said for said in first.value)


def test_processes_that_came_apart_stop():
    def work(rank: int) -> None:
        with world().together("a product", torch.full((3,), 1.0 + 1e-12 * rank, dtype=torch.float64)):
            pass

    def elsewhere(rank: int) -> None:
        with world().together(("a product", "scoring")[rank]):
            pass

    for outcome in (*forked(2, work), *forked(2, elsewhere)):
        assert outcome.kind == "ProcessError"
        assert "they came to different results" in (outcome.error or "")


def test_tensors_of_different_lengths_are_joined():
    def work(rank: int) -> list[Tensor]:
        return [world().joined(torch.full((n, 2), float(rank))) for n in (rank, 2 - rank, 0)]

    for outcome in forked(3, work):
        first, second, none = outcome.value
        assert first[:, 0].tolist() == [1.0, 2.0, 2.0]
        assert second[:, 0].tolist() == [0.0, 0.0, 1.0]
        assert none.shape == (0, 2)


def test_alone_nothing_is_asked():
    assert World().joined(torch.ones(2)).tolist() == [1.0, 1.0]
    with pytest.raises(KeyError), World().together("work"):
        raise KeyError


def test_memory_that_runs_out_on_one_process_changes_no_score(monkeypatch: pytest.MonkeyPatch):
    """Its batches are halved, the others' are not: batches are nobody else's business."""
    with quiet():
        alone = scores(kept(37, 23), single(), solver=Lanczos(0.1))
    contraction = scoring.contraction

    def small(*given: Any) -> Any:
        contract = contraction(*given)

        def contracted(batch: Any) -> Any:
            if world().rank == 1 and len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")
            return contract(batch)

        return contracted

    monkeypatch.setattr(scoring, "contraction", small)

    def work(rank: int) -> tuple[Found, Any]:
        with quiet():
            found = trace(kept(37, 23), single(), solver=Lanczos(0.1))
        return {name: found[name].values for name in found}, found.statistics["notices"]

    for outcome in forked(2, work):
        found, notices = outcome.value
        for name, values in alone.items():
            torch.testing.assert_close(found[name], values, rtol=1e-10, atol=0)
        assert notices == [
            f"stage '{name}': memory ran out, so that scoring took 2 examples at once (process 1)" for name in alone
        ]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ProcessError, match=r"process 2 .* PyTorch sees 2\. Start at most 2 here"), started():
        pass
