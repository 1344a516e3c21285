"""Retrainings shared among processes: the same numbers, honest errors, nothing that hangs."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace.errors import DataError, SolveError
from stagetrace.validation import SGD, Adam, Resolve, Steps
from stagetrace.validation.fits import CustomTraining, Fit
from stagetrace.validation.fits.fit import Copies
from stagetrace.validation.retrain import Retraining
from stagetrace.validation.workers import Job, JobResult, default_processes, run_jobs
from tests.chains import FROZEN_RIDGE, FROZEN_TANH, STRONG_LOGISTIC, ChainCase, chain_of, query_of
from tests.oracles import Point, solved
from tests.validation.fits import Branching, model_of, of
from tests.validation.plain import Plain, trained

RUNS = [(index,) for index in range(6)]


def retraining_of(case: ChainCase, fit: Any) -> Retraining:
    chain = chain_of(case, solved(case))
    fits: Any = fit if isinstance(fit, dict) else dict.fromkeys(chain.names, fit)
    return Retraining(chain, query_of(case), "pretrain", fits)


def works(together: int = 2) -> list[Job]:
    return [
        Job(seed, by, tuple(RUNS[i : i + together]))
        for seed, by in ((0, 1.0), (1, 0.5))
        for i in range(0, len(RUNS), together)
    ]


def in_order(done: list[JobResult]) -> dict[tuple[int, float, tuple[int, ...]], tuple[float, float]]:
    return {
        (each.job.seed, each.job.by, removal): (float(loss), float(each.control))
        for each in done
        for removal, loss in zip(each.job.removals, each.losses, strict=True)
    }


def by_loop(case: ChainCase) -> dict[str, Fit]:
    """Closures over the case and over tensors, which no process could be sent."""
    how = Plain("SGD", {"lr": 0.05}, 4, 6)

    def first(weights: Tensor, seed: int) -> nn.Module:
        return model_of(case.stages[0], trained(case.stages[0], solved(case)[0], weights, {}, how, seed))

    def second(weights: Tensor, previous: nn.Module, seed: int) -> nn.Module:
        point: Point = {name: p.detach() for name, p in previous.named_parameters()}
        return model_of(case.stages[1], trained(case.stages[1], solved(case)[1], weights, point, how, seed))

    return {"pretrain": CustomTraining(first), "finetune": CustomTraining(second)}


# The same numbers

FITS: dict[str, Callable[[ChainCase], Any]] = {
    "steps": lambda case: Steps(Adam(0.01), 4, 6),
    "resolve": lambda case: Resolve(),
    "closures": by_loop,
}


@pytest.mark.parametrize(
    ("fit", "together"), [("steps", 1), pytest.param("resolve", 3, marks=pytest.mark.slow), ("closures", 1)]
)
def test_two_processes_find_what_one_finds(fit: str, together: int):
    retraining = retraining_of(STRONG_LOGISTIC, FITS[fit](STRONG_LOGISTIC))
    alone = in_order(list(run_jobs(retraining, works(together), 1)))
    shared = list(run_jobs(retraining, works(together), 2))
    assert in_order(shared) == alone
    assert len(alone) == 12
    assert len({loss for loss, _ in alone.values()}) >= 12
    assert all(0 < done.seconds < 60 for done in shared)


def test_the_users_closures_do_what_steps_do():
    steps = retraining_of(FROZEN_TANH, Steps(SGD(0.05), 4, 6))
    calls = retraining_of(FROZEN_TANH, by_loop(FROZEN_TANH))
    expected = in_order(list(run_jobs(steps, works(6), 1)))
    found = in_order(list(run_jobs(calls, works(6), 1)))
    for key, pair in expected.items():
        assert found[key] == pytest.approx(pair, rel=1e-12)


def test_the_pieces_do_not_matter():
    retraining = retraining_of(FROZEN_TANH, Steps(Adam(0.01), 10, 6))
    expected = in_order(list(run_jobs(retraining, works(6), 1)))
    for together in (1, 4):
        found = in_order(list(run_jobs(retraining, works(together), 1)))
        for key, (loss, control) in expected.items():
            assert found[key][0] - found[key][1] == pytest.approx(loss - control, abs=1e-13)


def test_models_that_cannot_be_batched_are_trained_alone():
    chain = of(Branching())
    retraining = Retraining(chain, query_of_branching(), "s", {"s": Steps(SGD(0.05), 5, 2)})
    done = list(run_jobs(retraining, works(1), 1))
    assert all(float(each.losses[0]) != float(each.control) for each in done)


def query_of_branching() -> Any:
    from stagetrace import Query

    return Query(of(Branching()).stages[0].data)


def test_no_work_is_no_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Retraining, "prepare", lambda self: pytest.fail("nothing is to be prepared"))
    assert list(run_jobs(retraining_of(FROZEN_RIDGE, Resolve()), [], 2)) == []


def test_one_process_for_each_core():
    assert 1 <= default_processes() <= (os.cpu_count() or 1)


# What goes wrong


class Scripted(Fit):
    """Returns the stage as it was, shifted by the weights, after `script(removed example)`."""

    is_stochastic = False

    def __init__(self, script: Callable[[int], object]) -> None:
        self.script = script

    def __call__(self, bound: Any, weights: Tensor, before: Copies | None, seed: int) -> Copies:
        del before, seed
        values = {name: p.detach() for name, p in bound.stage.model.named_parameters()}
        for weight in weights:
            if bound.name == "pretrain" and float(weight.min()) == 0:
                self.script(int(weight.argmin()))
        return {name: value.expand(len(weights), *value.shape).clone() for name, value in values.items()}


def scripted(script: Callable[[int], object]) -> Retraining:
    return retraining_of(FROZEN_RIDGE, Scripted(script))


def wait_for(path: Path, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.005)


SINGLE = [Job(0, 1.0, (run,)) for run in RUNS]
MANY = [Job(0, 1.0, ((index,),)) for index in range(23)]


def failing(folder: Path, kind: Callable[[], object], index: int) -> None:
    """Example 0 fails as soon as example 1 has begun; that one ends a little later."""
    (folder / f"began {index}").touch()
    if index == 0:
        wait_for(folder / "began 1")
        kind()
    if index == 1:
        wait_for(folder / "began 0")
        time.sleep(0.3)
    time.sleep(0.05)


def raise_(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error", [DataError("example 0 is no good"), SolveError("no minimum"), ValueError("the user's own")], ids=repr
)
def test_an_error_arrives_as_it_was_and_what_had_begun_is_kept(tmp_path: Path, error: Exception):
    kept = list[int]()
    reader = run_jobs(scripted(partial(failing, tmp_path, lambda: raise_(error))), MANY, 2)
    with pytest.raises(type(error)) as caught:
        kept.extend(done.job.removals[0][0] for done in reader)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert 1 in kept
    assert 0 not in kept
    assert len(list(tmp_path.iterdir())) < len(MANY)  # the rest did not even begin


def test_an_error_in_this_process_arrives_too():
    with pytest.raises(DataError, match="no good"):
        list(run_jobs(scripted(lambda index: raise_(DataError("no good"))), SINGLE, 1))


def test_a_killed_process_is_said():
    with pytest.raises(SolveError, match=r"a retraining process was killed .* fewer processes") as caught:
        list(run_jobs(scripted(lambda i: os.kill(os.getpid(), signal.SIGKILL) if i == 3 else None), SINGLE, 2))
    assert "\n" not in str(caught.value)


def sleeping(folder: Path, index: int) -> None:
    (folder / f"{os.getpid()}.{index}").touch()
    time.sleep(120)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def interrupted(folder: Path) -> None:
    """What a forked process of the test does: it prepares nothing that the test's own process would miss."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        list(run_jobs(scripted(partial(sleeping, folder)), SINGLE, 2))
    except KeyboardInterrupt:
        os._exit(17)


@pytest.mark.skipif(os.name != "posix", reason="signals and forks")
@pytest.mark.parametrize("whom", ["the parent", "all"])
def test_an_interrupt_does_not_hang_and_leaves_nothing_behind(tmp_path: Path, whom: str):
    parent = multiprocessing.get_context("fork").Process(target=interrupted, args=(tmp_path,))
    parent.start()
    assert eventually(lambda: len(list(tmp_path.iterdir())) >= 2)
    children = sorted({int(path.name.split(".")[0]) for path in tmp_path.iterdir()})
    assert parent.pid is not None
    for pid in [parent.pid, *(children if whom == "all" else [])]:
        os.kill(pid, signal.SIGINT)
    parent.join(20)
    assert parent.exitcode == 17
    assert all(eventually(partial(gone, pid)) for pid in children)


def test_a_reader_that_goes_away_does_not_wait(tmp_path: Path):
    def script(index: int) -> None:
        if index:
            (tmp_path / f"{os.getpid()}").touch()
            time.sleep(120)

    started = time.monotonic()
    reader = run_jobs(scripted(script), SINGLE, 2)
    assert next(iter(reader)).job.removals == ((0,),)
    assert eventually(lambda: len(list(tmp_path.iterdir())) == 2)
    reader.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert time.monotonic() - started < 60
    assert all(eventually(partial(gone, int(path.name))) for path in tmp_path.iterdir())


def test_other_children_of_this_process_live_on(tmp_path: Path):
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    other.start()
    try:
        reader = run_jobs(scripted(lambda index: time.sleep(0.01 * index)), SINGLE, 2)
        next(iter(reader))
        reader.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert other.is_alive()
    finally:
        other.terminate()
        other.join()


def test_an_accelerator_is_used_from_this_process_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    here: list[int] = []
    list(run_jobs(scripted(lambda index: here.append(os.getpid())), SINGLE, 2))
    assert here == [os.getpid()] * len(RUNS)
