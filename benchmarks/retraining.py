"""`retraining`: what training a chain again costs, several copies as one model and solved from a known curvature.

The work, counted. By steps: a copy takes `steps` gradients of a batch, whether alone or with others; one model of k
copies reads each batch once and starts k times fewer operations, and its activations take k times the memory, which a
small cache does not forgive. Solved again: a Newton step from a minimum takes as many products as conjugate gradients
need; the known curvature of that minimum makes most eigenvalues one. The dense curvature costs one product a parameter,
once.

Each row is measured beside the first one, in turns, so that their ratio stands on a busy machine too.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.utils.data import TensorDataset

from benchmarks.report import Report, Row
from experiments.networks import ConvNet, Dense
from stagetrace import Chain, Stage
from stagetrace.objectives import Classification
from stagetrace.stages.bound import BoundStage
from stagetrace.validation import Adam, Steps, polish
from stagetrace.validation.newton import minimise
from stagetrace.validation.preconditioner import Preconditioner
from stagetrace.validation.resolving import leave_out

COPIES = (1, 2, 4, 8, 25)


def run(report: Report) -> None:
    """Medians over rounds; every count of copies once in each."""
    _by_steps(report)
    _solved_again(report)


def _by_steps(report: Report) -> None:
    task = report.asked.digits()
    model = ConvNet(task.train.pixels.shape[1:], len(task.classes)).to(report.asked.device)
    stage = Stage("pretrain", model=model, objective=Classification(), data=task.train.dataset)
    bound = BoundStage.of(stage, None)
    steps = 2 if report.asked.quick else 10
    fit = Steps(Adam(1e-4), steps=steps, batch_size=512)
    n = len(task.train)

    def train(copies: int) -> Callable[[], object]:
        weights = torch.stack([leave_out(n, [index]) for index in range(copies)])
        return lambda: fit(bound, weights, None, 0)

    rounds = [
        {copies: _seconds(train(copies)) / copies for copies in COPIES} for _ in range(report.asked.repetitions(5))
    ]
    table: list[Row] = [
        {
            "copies in one model": copies,
            "ms a step and copy": 1e3 * median(each[copies] for each in rounds) / steps,
            "over one copy": median(each[copies] / each[1] for each in rounds),
        }
        for copies in COPIES
    ]
    report.table(
        f"{steps} steps of Adam, batches of 512, {sum(p.numel() for p in model.parameters()):,} parameters",
        table,
        "steps",
    )


def _solved_again(report: Report) -> None:
    task = report.asked.digits()
    count = 300 if report.asked.quick else 5000
    features = torch.nn.functional.adaptive_avg_pool2d(task.train.pixels[:count].double(), 10).flatten(1)
    features = (features - features.mean(dim=0)) / features.std()
    torch.manual_seed(report.asked.seed)
    model = Dense(features.shape[1], 16, len(task.classes)).double().to(report.asked.device)
    data = TensorDataset(features, task.train.labels[:count])
    stage = Stage("pretrain", model=model, objective=Classification(), data=data, weight_decay=1e-2, batch_size=count)
    bound = polish(Chain(stage)).chain["pretrain"]
    started = time.perf_counter()
    known = Preconditioner.of(bound)
    once = time.perf_counter() - started
    found: list[Row] = []
    for index in range(3 if report.asked.quick else 20):
        row: Row = {}
        for name, preconditioner in (("plain", None), ("known", known)):
            before = time.perf_counter()
            minimum = minimise(bound, leave_out(count, [index]), strict=False, preconditioner=preconditioner)
            row[f"{name} s"] = time.perf_counter() - before
            row[f"{name} products"] = minimum.products
        found.append(row)
    table: list[Row] = [
        {
            "from": words,
            "products": median(row[f"{name} products"] for row in found),
            "ms": 1e3 * median(row[f"{name} s"] for row in found),
            "solved again a minute": 60 / median(row[f"{name} s"] for row in found),
            "time over plain": median(row[f"{name} s"] / row["plain s"] for row in found),
        }
        for name, words in (("plain", "conjugate gradients alone"), ("known", "the minimum's own curvature"))
    ]
    report.table(
        f"One example of {count:,} out, {bound.trained.size:,} parameters, float64, to a gradient norm of 1e-8",
        table,
        "solved_again",
    )
    report.fields["seconds_to_know_the_curvature"] = once


def _seconds(work: Callable[[], object]) -> float:
    before = time.perf_counter()
    work()
    return time.perf_counter() - before
