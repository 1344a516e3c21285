"""`gpu`: what a GPU takes for what the CPU does, in the same run, and that both give the same scores.

The digits' pretraining stage with the network of about 421,000 parameters, in float32: a gradient of all examples, a
product with the Gauss-Newton matrix over 1,000 of them, scores along one vector, and a whole trace of one query. Then
the shape of GPT-2 with 124 million parameters and random weights, on the GPU alone: what a product costs in gradients,
and the memory that each work takes beyond the model. By the clock, the GPU's queue waited for. Run it by `make gpu`;
where there is no GPU it says so and measures nothing.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.report import Report, Row
from benchmarks.setting import large_network, parameters
from benchmarks.transformer import language_model
from stagetrace import EKFAC, Chain, GaussNewton, Hessian, Lanczos, Query, Shift, Stage, trace
from stagetrace.curvature.choices import Curvature
from stagetrace.errors import DataError
from stagetrace.objectives import Classification, NextToken
from stagetrace.progress import Silent
from stagetrace.results.parts import join
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import mean_gradient
from stagetrace.tracing.score import Scorer

SEQUENCES, LENGTH = 64, 512

APART = 1e-2
"""How far scores may be apart: the trace solves to a residual of 1e-3, and a GPU rounds otherwise."""


def run(report: Report) -> None:
    """Both devices in turn, work by work."""
    if not torch.cuda.is_available():
        raise DataError("gpu: PyTorch finds no GPU here; run it where torch.cuda.is_available()")
    asked = report.asked
    torch.backends.cuda.matmul.allow_tf32 = False
    task = asked.digits().to(torch.device("cpu"))
    model = large_network(asked, task).cpu()
    train = TensorDataset(task.train.pixels, task.train.labels)
    tests = TensorDataset(task.test.pixels, task.test.labels)
    report.fields |= {"parameters": parameters(model), "examples": len(train), "card": torch.cuda.get_device_name()}
    rows, scores = list[Row](), dict[str, Tensor]()
    seconds: dict[str, dict[str, float]] = {}
    for device in ("cuda", "cpu"):
        stage = Stage("pretrain", model=model.to(device), objective=Classification(), data=train, batch_size=512)
        chain = Chain(stage)
        works = _works(chain.last, asked.hessian_examples)
        seconds[device] = {name: _timed(work, 3 if device == "cuda" else 1) for name, work in works.items()}
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solver = Lanczos(0.01, 1e-3, filter=Shift)
            curvature = GaussNewton(examples=asked.hessian_examples)
            found = trace(chain, Query(tests, batch_size=512), curvature=curvature, solver=solver)
        seconds[device]["a whole trace of one query"] = time.perf_counter() - started
        scores[device] = found["pretrain"].values
    for name, there in seconds["cuda"].items():
        here = seconds["cpu"][name]
        rows.append({"work": name, "GPU, s": there, "CPU, s": here, "times": here / there})
    report.fields["GPU memory, peak MB"] = torch.cuda.max_memory_allocated() / 2**20
    report.table("A GPU and a CPU at the same work", rows, "gpu")
    apart = float((scores["cuda"] - scores["cpu"]).abs().max() / scores["cpu"].abs().max())
    report.target("largest difference of a score, over the largest score", apart, APART)
    _transformer(report)


def _transformer(report: Report) -> None:
    """Work by work over sequences of random words."""
    few = report.asked.quick
    width, layers, number, length = (64, 2, 8, 32) if few else (768, 12, SEQUENCES, LENGTH)
    model = language_model("GPT-2", length, width, layers, 2000 if few else 50_257).cuda()
    ids = torch.randint(2000, (number, length), generator=torch.Generator().manual_seed(report.asked.seed))
    data = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in ids]
    described: dict[str, Any] = {"model": model, "objective": NextToken(), "data": data, "batch_size": 8}
    bound = Chain(Stage("pretrain", **described)).last
    rounded = Chain(Stage("pretrain", precision="bf16", **described)).last
    vector = torch.randn(bound.trained.size, 1, device="cuda")
    held, rows = torch.cuda.memory_allocated(), list[Row]()
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "a gradient of all sequences": lambda: lambda: mean_gradient(bound.risk),
        "a product with the Gauss-Newton matrix": lambda: _product(GaussNewton(), bound, vector),
        "a product with the Hessian": lambda: _product(Hessian(), bound, vector),
        "scores along one vector": lambda: _scoring(bound, vector),
        "a gradient, matrix products in bf16": lambda: lambda: mean_gradient(rounded.risk),
        "a product with the Gauss-Newton matrix, in bf16": lambda: _product(GaussNewton(), rounded, vector),
        "scores along one vector, in bf16": lambda: _scoring(rounded, vector),
        "the fit of EK-FAC": lambda: lambda: EKFAC().operator(bound),
    }
    for name, make in makers.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        work = make()
        torch.cuda.synchronize()
        prepared = time.perf_counter() - started
        seconds = _timed(work, 2)
        rows.append(
            {
                "work": name,
                "s": seconds,
                "gradients": seconds / (rows[0]["s"] if rows else seconds),
                "tokens a second": number * length / seconds,
                "made ready, s": prepared,
                "memory beyond the model, MB": (torch.cuda.max_memory_allocated() - held) / 2**20,
            }
        )
        del work
    what = f"GPT-2, {parameters(model):,} parameters, {number} sequences of {length} tokens"
    report.table(f"On the GPU alone: {what}", rows, "gpu-transformer")


def _product(curvature: Curvature, bound: BoundStage, vector: Tensor) -> Callable[[], object]:
    operator = curvature.operator(bound)
    return lambda: operator @ vector


def _scoring(bound: BoundStage, vector: Tensor) -> Callable[[], object]:
    scorer = Scorer.of(bound.risk, vector, parts=False, rows=None)
    return lambda: join("pretrain", scorer.run(lambda number: None, lambda number, part: None, Silent()))


def _works(bound: BoundStage, examples: int) -> dict[str, Callable[[], object]]:
    vector = torch.randn(bound.trained.size, 1, generator=torch.Generator().manual_seed(0))
    vector = vector.to(bound.trained.device, bound.trained.dtype)
    operator = GaussNewton(examples=examples).operator(bound)
    return {
        "a gradient of all examples": lambda: mean_gradient(bound.risk),
        f"a product over {examples:,} examples": lambda: operator @ vector,
        "scores along one vector": _scoring(bound, vector),
    }


def _timed(work: Callable[[], object], times: int) -> float:
    """The least of some calls, after one that does not count."""
    work()
    found = list[float]()
    for _ in range(times):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)
