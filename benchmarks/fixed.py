"""`fixed`: what a run pays whatever it asks, and what a plan costs.

    python -m benchmarks fixed --data DIR --out FILE [--other CHECKOUT]

One query (the mean loss of all test images) against 22,731 training images: `trace` as a fresh process pays it, imports
that it causes, the solve and all scores included, and reading the files not. The work, counted: three forward passes
over all examples for the scores, a gradient over the test images, and the products over 1,000 examples that the solve
takes. What is above that is fixed.

A plan (the probe before the first product) for language models of random weights, over one gradient of their examples,
and the most bytes that the process has held before and after the plan and after two products.

Each number is of a fresh process and of the processor, the least of some rounds. With `--other CHECKOUT` the other's
source is measured by the same program in turn, so that a slow spell of the machine hits both.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.memory import peak
from benchmarks.report import Report, Row
from benchmarks.setting import HESSIAN_EXAMPLES, small_network
from experiments.networks import ConvNet

HERE = Path(__file__).parents[1]
RUNS = ("default", "Hessian, Tikhonov 1e-3", "Gauss-Newton + 0.01")
MODELS = {"GPT-2 8.9M": (256, 6, 8), "GPT-2 46M": (512, 12, 2)}
"""Width, layers, and sequences of 128 tokens."""

VOCABULARY, LENGTH = 16_000, 128
PLAN_TARGET = 2.0
WITHOUT = ("torch._dynamo", "sympy")
"""What PyTorch imports for some ways to differentiate, and a run has no need of."""


def run(report: Report) -> None:
    """All cases, this checkout and the other in turn."""
    asked, other = report.asked, report.asked.other
    task = asked.digits()
    network = small_network(asked, task)
    sources = {"this": HERE / "src"} | ({} if other is None else {"other": other / "src"})
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits.safetensors"
        kept = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        images = {"pixels": task.train.pixels, "labels": task.train.labels}
        tests = {"test_pixels": task.test.pixels, "test_labels": task.test.labels}
        save_file({**images, **tests, **{f"weights.{name}": tensor for name, tensor in kept.items()}}, data)
        found = {
            case: {who: list[dict[str, Any]]() for who in sources}
            for case in (*RUNS, *(f"{name}, {matrix}" for name in MODELS for matrix in ("Hessian", "GaussNewton")))
        }
        for _ in range(1 if asked.quick else 3):
            for case, taken in found.items():
                if asked.quick and case.startswith("GPT-2 46M"):
                    continue
                for who, source in sources.items():
                    taken[who].append(_apart(source, case, data))
    _runs(report, found)
    _plans(report, found)


Found = dict[str, dict[str, list[dict[str, Any]]]]


def _runs(report: Report, found: Found) -> None:
    table: list[Row] = []
    for case in RUNS:
        least = {who: min(each["seconds"] for each in taken) for who, taken in found[case].items()}
        for who, taken in found[case].items():
            row: Row = {"run": case, "checkout": who, "least s": least[who], "over the other": None}
            if who == "this" and "other" in least:
                row["over the other"] = least[who] / least["other"]
            last = taken[-1]
            row |= {"products": last["products"], "checks": last["checks"], "residual": last["residual"]}
            row |= {"peak MB": min(each["peak"] for each in taken) / 1e6, "imported": last["imported"]}
            table.append(row)
    report.table("One query, all scores: processor seconds of `trace`", table, "runs")


def _plans(report: Report, found: Found) -> None:
    table: list[Row] = []
    for case, by_checkout in found.items():
        for who, taken in by_checkout.items():
            if case in RUNS or not taken:
                continue
            best = min(taken, key=lambda each: each["plan"])
            gradient = min(each["gradient"] for each in taken)
            table.append(
                {
                    "plan": case,
                    "checkout": who,
                    "least s": best["plan"],
                    "gradients": best["plan"] / gradient,
                    "product, gradients": min(each["product"] for each in taken) / gradient,
                    "peak MB before": best["peak before"] / 1e6,
                    "after the plan": best["peak plan"] / 1e6,
                    "after products": best["peak product"] / 1e6,
                }
            )
            if who == "this":
                report.target(f"plan in gradients, {case}", table[-1]["gradients"], PLAN_TARGET)
                over = (best["peak plan"] - best["peak product"]) / 1e6
                report.target(f"MB of the plan's peak above that of products, {case}", over, 0)
    report.table("What a plan costs, over a gradient of the same sequences", table, "plans")


def _apart(source: Path, case: str, data: Path) -> dict[str, Any]:
    """One case in a fresh process, with the source of one checkout and this program."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(source), str(HERE)])}
    command = [sys.executable, "-m", "benchmarks.fixed", case, str(data), str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=HERE)
    return json.loads(done.stdout.splitlines()[-1])


def _traced(case: str, data: Path) -> dict[str, Any]:
    """`trace` from its first line to its last."""
    from stagetrace import Chain, GaussNewton, Hessian, Lanczos, Query, Shift, Stage, trace
    from stagetrace.objectives import Classification

    tensors = load_file(data)
    pixels, labels = tensors["pixels"], tensors["labels"]
    model = ConvNet(pixels.shape[1:], classes=int(labels.max()) + 1)
    weights: dict[str, Tensor] = {
        name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")
    }
    model.load_state_dict(weights)
    stage = Stage("pretrain", model=model.eval(), objective=Classification(), data=TensorDataset(pixels, labels))
    query = Query(TensorDataset(tensors["test_pixels"], tensors["test_labels"]))
    ways: dict[str, dict[str, Any]] = {
        RUNS[0]: {},
        RUNS[1]: {"curvature": Hessian(examples=HESSIAN_EXAMPLES), "solver": Lanczos(1e-3, rtol=1e-3)},
        RUNS[2]: {
            "curvature": GaussNewton(examples=HESSIAN_EXAMPLES),
            "solver": Lanczos(0.01, rtol=1e-3, filter=Shift),
        },
    }
    started = time.process_time()
    result = trace(Chain(stage), query, **ways[case])
    seconds, solution = time.process_time() - started, result.solutions["pretrain"]
    return {
        "seconds": seconds,
        "products": solution.products,
        "checks": solution.checks,
        "residual": solution.relative_residual,
        "peak": peak(),
        "imported": ", ".join(name for name in WITHOUT if name in sys.modules) or "-",
    }


def _planned(case: str) -> dict[str, Any]:
    """The plan of a language model's curvature, and two products with it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from stagetrace import Chain, GaussNewton, Hessian, Stage
    from stagetrace.objectives import NextToken
    from stagetrace.stages.gradient import batch_gradient

    name, _, matrix = case.partition(", ")
    width, layers, sequences = MODELS[name]
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=width,
        n_layer=layers,
        n_head=width // 64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    tokens = torch.randint(0, VOCABULARY, (sequences, LENGTH), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    model = GPT2LMHeadModel(config).eval()
    bound = Chain(Stage("language", model=model, objective=NextToken(), data=data, batch_size=sequences))["language"]
    (batch,) = bound.risk.read([range(sequences)])
    gradient = min(_seconds(lambda: batch_gradient(bound.risk, batch)) for _ in range(2))
    before = peak()
    curvature = {"Hessian": Hessian, "GaussNewton": GaussNewton}[matrix]()
    started = time.process_time()
    operator = curvature.operator(bound)
    plan, after = time.process_time() - started, peak()
    vectors = torch.randn(2, operator.size, generator=torch.Generator().manual_seed(1))
    product = min(_seconds(lambda vector=vector: operator @ vector) for vector in vectors)
    return {
        "gradient": gradient,
        "plan": plan,
        "product": product,
        "peak before": before,
        "peak plan": after,
        "peak product": peak(),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    print(json.dumps(_traced(sys.argv[1], Path(sys.argv[2])) if sys.argv[1] in RUNS else _planned(sys.argv[1])))
