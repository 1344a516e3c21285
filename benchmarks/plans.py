"""`plans`: what `stagetrace check` says beforehand of a run's seconds, memory and disk, and what the run then took.

Configurations are drawn by the seed from a grid (`benchmarks/plan_runs.py`): networks (linear, MLP, convolutional,
BERT, GPT-2, Llama, and GPT-2 with adapters trained alone), curvatures, solvers, the mean of 100 queries or 1 to 100 of
them, one or two stages, float32 and float64, and numbers of examples. Each is predicted in one process and run, into a
folder, in another; nothing of a run is known to its prediction, and nothing in the library is set by them. Both
processes are forked from this one, in which everything is imported and nothing was computed.

Seconds are the processor's, a short training and first calls included, imports apart; memory is the process's peak;
disk is the size of the folder. Other work on the machine makes the same work take longer: `at equal speed` is the ratio
of the seconds over that of a fixed piece of work, timed before and after each.

The data are random clusters and random sentences: what is measured is work, not influence.
"""

import multiprocessing
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.memory import peak
from benchmarks.plan_runs import Configuration
from benchmarks.report import Report, Row
from stagetrace import trace
from stagetrace.preflight import predict

CONFIGURATIONS, QUICK = 32, 2
MEMORY, SECONDS = 0.15, 0.30
"""How far a prediction may lie from what was measured, over that."""

WITHIN = 0.9
"""Of the plans: how many are to lie within."""


def run(report: Report) -> None:
    """Every configuration, predicted and run; then how many lie within the bounds."""
    random, rows, failed = Random(report.asked.seed), list[Row](), list[str]()
    while len(rows) + len(failed) < (QUICK if report.asked.quick else CONFIGURATIONS):
        try:
            rows.append(compared(Configuration.drawn(random)))
        except RuntimeError as cause:  # one that cannot be predicted is not within any bound
            report.say(f"{cause}")
            failed.append(f"{cause}".strip().splitlines()[0] + " ... " + f"{cause}".strip().splitlines()[-1])
            continue
        report.say("; ".join(f"{key} {value:.3g}" for key, value in rows[-1].items() if isinstance(value, float)))
    report.fields["failed"] = failed
    report.table("Runs as predicted and as they were", rows, "plans")
    number = len(rows) + len(failed)
    shares = list[Row]()
    for what, key, bound in (
        ("memory", "MB, ratio", MEMORY),
        ("seconds", "s, ratio", SECONDS),
        ("seconds, at equal speed", "at equal speed", SECONDS),
        ("disk", "disk, ratio", MEMORY),
    ):
        inside = sum(abs(row[key] - 1) <= bound for row in rows)
        ratios = sorted(row[key] for row in rows)
        shares.append(
            {
                "what": what,
                "within": f"{bound:.0%}",
                "plans": number,
                "inside": inside,
                "share": inside / number,
                "least ratio": ratios[0],
                "median": ratios[len(ratios) // 2],
                "largest": ratios[-1],
            }
        )
    report.table("How many lie within the bounds", shares, "shares")
    for share in shares[:2]:
        what = f"share of {number} plans further than {share['within']} from the run in {share['what']}"
        report.target(what, 1 - share["share"], 1 - WITHIN)


def compared(chosen: Configuration) -> Row:
    """One configuration: said, and measured."""
    said, found = _apart(_predicted, chosen), _apart(_ran, chosen)
    return {
        "configuration": chosen.words,
        "stages": chosen.stages,
        "dtype": chosen.dtype,
        "examples": chosen.examples,
        "parameters": found["parameters"],
        "s, said": said["seconds"],
        "s": found["seconds"],
        "s, ratio": said["seconds"] / found["seconds"],
        "at equal speed": said["seconds"] / said["reference"] / (found["seconds"] / found["reference"]),
        "MB, said": said["memory"] / 1e6,
        "MB": found["memory"] / 1e6,
        "MB, ratio": said["memory"] / found["memory"],
        "disk, kB said": said["disk"] / 1e3,
        "disk, kB": found["disk"] / 1e3,
        "disk, ratio": said["disk"] / found["disk"],
        "products, said": said["products"],
        "products": found["products"],
        "s to predict": said["spent"],
    }


def _apart(work: Callable[[Configuration], Row], chosen: Configuration) -> Row:
    """What a process of its own says."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, chosen, theirs))
    process.start()
    theirs.close()
    try:
        found: Any = mine.recv()
    except EOFError:
        found = "it was killed"
    process.join()
    if isinstance(found, str):
        raise RuntimeError(f"{work.__name__} {chosen}: {found}")
    return found


def _answer(work: Callable[[Configuration], Row], chosen: Configuration, answer: Connection) -> None:
    try:
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer.send(work(chosen))
    except Exception:
        answer.send(traceback.format_exc())


def _predicted(chosen: Configuration) -> Row:
    chain, query = chosen.job()
    reference, before = reference_seconds(), time.process_time()
    found = predict(chain, query, **chosen.settings())
    spent = time.process_time() - before
    reference += reference_seconds()
    return {
        "seconds": found.seconds.cpu - reference / 2,
        "memory": found.memory,
        "disk": found.disk,
        "spent": spent,
        "reference": reference,
        "products": sum(phase.products for phase in found.phases),
        "phases": [(p.where, p.what, p.seconds.cpu, p.memory, p.how) for p in found.phases],
    }


def _ran(chosen: Configuration) -> Row:
    chain, query = chosen.job()
    reference = reference_seconds()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        found = trace(chain, query, **chosen.settings(), out=run)
        seconds, memory = time.process_time() - reference, peak()
        disk = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    reference += reference_seconds()
    return {
        "seconds": seconds,
        "memory": memory,
        "disk": disk,
        "parameters": chain.last.trained.size,
        "reference": reference,
        "products": sum(solution.products + solution.checks for solution in found.solutions.values()),
        "phases": found.statistics["seconds"],
    }


def reference_seconds() -> float:
    """Seconds of the same work in every process: how fast the machine is while it is measured."""
    draw = torch.Generator().manual_seed(0)
    images, kernel = torch.randn(64, 8, 16, 16, generator=draw), torch.randn(16, 8, 3, 3, generator=draw)
    kernel.requires_grad_()
    before = time.process_time()
    for _ in range(40):
        torch.autograd.grad(F.conv2d(images, kernel).tanh().square().sum(), kernel)
    return time.process_time() - before
