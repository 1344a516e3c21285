"""`stagetrace demo`, from the digits to the printed agreement and the folder that keeps it."""

import json
import shlex
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from stagetrace import Chain, Hessian, Lanczos, Query, Trace, report, trace
from stagetrace.demo.digits import Settings, Splits, load, query_of, train
from stagetrace.demo.result import MADE_BY, Check, DemoResult, check, drawn
from stagetrace.errors import ResultsError
from stagetrace.progress import Progress, Silent
from stagetrace.results.files import filled, is_litter
from stagetrace.results.jsonable import JSON, json_text
from stagetrace.validation.resolving import query_loss

RECORD = "demo.json"

_UNMARKED = frozenset({"sign", "slope", "test_loss", "stages", "checks", "seconds"})
"""What the record of a demo holds that was written before records said who made them."""


def check_place(out: Path) -> None:
    """Refuse a place that holds anything but a demo, before the work; nothing is written.

    Raises:
        ResultsError: a file, or a folder in which something else lies.
    """
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out} is a file, not a folder; type a new folder: stagetrace demo --out DIR")
    if out.exists() and not is_own(out) and not all(is_litter(path) for path in out.iterdir()):
        raise ResultsError(
            f"{out} holds something that is not the demo's, and stays as it is; type another folder: "
            f"stagetrace demo --out DIR"
        )


def is_own(out: Path) -> bool:
    """Whether a folder holds what a demo wrote."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and (record.get("made_by") == MADE_BY or record.keys() >= _UNMARKED)


def keep(found: Trace, record: JSON, out: Path, chain: Chain, query: Query, command: str) -> Path:
    """Write the run, its report and its numbers beside `out`, then move each into place; what else lies there stays.

    Returns:
        The report.

    Raises:
        ResultsError: `out` holds something else by now, or the file system refused.
    """
    with filled(out, first=RECORD) as staging:
        found.save(staging)
        (staging / RECORD).write_text(json_text(record), encoding="utf-8")
        report.write(staging, chain, query, command=command)
        check_place(out)
        (out / "run.json").unlink(missing_ok=True)  # a folder without it is no run: what is interrupted is never read
    return report.write(out)  # once more, with what else lies in the folder, such as a validation


def run(
    out: str | Path | None = None,
    progress: Progress | None = None,
    console: Console | None = None,
    *,
    settings: Settings | None = None,
) -> DemoResult:
    """Pretrain on the digits 0 to 3, fine-tune on 4 to 9, score every pretraining digit, and check some of the scores.

    The score is exact here: the exact Hessian over all examples, at minima that are strict, inverted to eight digits.
    What is left between prediction and truth is that removing a whole digit is no small change; hence the tenths.

    Args:
        out: a folder for the run, with `report.html` and `demo.json` in it; that of an earlier demo is replaced,
            and what else lies in it stays. None keeps nothing.
        progress: what to draw on the way.
        console: where to print the result; None prints nothing (it can be printed later, `rich.print(result)`).
        settings: sizes and seed; the same settings give the same numbers.

    Raises:
        DescriptionError: scikit-learn is not installed.
        ResultsError: `out` holds something that is not a demo's, or the file system refused.
    """
    place = None if out is None else Path(out)
    if place is not None:
        check_place(place)
    page: Path | None = None
    with _one_thread():
        found, chain, query = _measured(progress or Silent(), settings or Settings())
        if place is not None:
            command = f"stagetrace demo --out {shlex.quote(str(place))}"
            page = keep(found.trace, found.record(), place, chain, query, command)
    if console is not None:
        console.print(found)
        if page is not None:
            console.print(f"to look at it, open {page}", markup=False, soft_wrap=True, highlight=False)
    return found


def _measured(progress: Progress, settings: Settings) -> tuple[DemoResult, Chain, Query]:
    started = time.perf_counter()
    splits = load(settings)
    randomly = drawn(len(splits.old), settings.random, settings.seed)  # before there are scores
    chain, trained = train(splits, settings, progress)
    query = query_of(splits)
    at_minimum = time.perf_counter()
    traced = trace(chain, query, curvature=Hessian(), solver=Lanczos(damping=0.0, rtol=1e-8), progress=progress)
    at_scores = time.perf_counter()
    checks = _checks(chain, query, traced, splits, randomly, settings, progress)
    ended = time.perf_counter()
    result = DemoResult(
        stages=trained,
        test_loss=float(query_loss(chain, query)),
        trace=traced,
        checks=checks,
        images=splits.old.images[:, 0],
        digits=tuple(splits.old.digits.tolist()),
        shown=settings.shown,
        seconds={
            "training": at_minimum - started,
            "tracing": at_scores - at_minimum,
            "checking": ended - at_scores,
            "in all": ended - started,
        },
    )
    return result, chain, query


@contextmanager
def _one_thread() -> Generator[None]:
    """Tensors this small gain nothing from more threads, and sums come out the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _checks(
    chain: Chain,
    query: Query,
    result: Trace,
    splits: Splits,
    randomly: list[int],
    settings: Settings,
    progress: Progress,
) -> tuple[Check, ...]:
    scores, digits = result["pretrain"], splits.old.digits.tolist()
    largest = scores.values.abs().sort(descending=True, stable=True).indices[: settings.largest].tolist()
    choices = {f"the {len(largest)} largest |score|": largest, f"{len(randomly)} drawn at random": randomly}
    return tuple(check(name, chosen, chain, query, scores, digits, progress) for name, chosen in choices.items())
