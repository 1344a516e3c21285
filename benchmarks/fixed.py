"""`fixed`: what a run pays whatever it asks, and what a plan costs.

    python -m benchmarks fixed --data DIR --out FILE [--other CHECKOUT]

One query (the mean loss of all test images) against 24,754 training images: `trace` as a fresh process pays it, imports
that it causes, the solve and all scores included, and reading the files not. The work, counted: three forward passes
over all examples for the scores, a gradient over the test images, and the products over 1,000 examples that the solve
takes. What is above that is fixed.

A plan (the probe before the first product) for language models of random weights, over one gradient of their examples,
and the most bytes that the process has held before and after the plan and after two products.

Each number is of a fresh process and of the processor, the least of some rounds. With `--other CHECKOUT` the other's
source is measured by the same program in turn, so that a slow spell of the machine hits both. Where curvlinops can be
imported (`PYTHONPATH`), its conjugate gradients on the same examples, in its documented way, are measured in turn, too:
(H + 0.01) x = b, which it stops at 200 products since H is indefinite, and (G + 0.01) x = b.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.data import TensorDataset

from benchmarks.memory import peak
from benchmarks.report import Report, Row
from benchmarks.setting import HESSIAN_EXAMPLES, small_network
from experiments.networks import ConvNet
from stagetrace.curvature.subset import seeded_subset

HERE = Path(__file__).parents[1]
RUNS = ("default", "Hessian, Tikhonov 1e-3", "Gauss-Newton + 0.01")
RIVALS = ("curvlinops CG, Hessian + 0.01", "curvlinops CG, Gauss-Newton + 0.01")
RIVAL_OF: dict[str, str] = dict(zip(RUNS, (RIVALS[0], RIVALS[0], RIVALS[1]), strict=True))
MODELS = {"GPT-2 8.9M": (256, 6, 8), "GPT-2 46M": (512, 12, 2)}
"""Width, layers, and sequences of 128 tokens."""
MODELS_BY_CASE = {f"{name}, {matrix}": (name, matrix) for name in MODELS for matrix in ("Hessian", "GaussNewton")}

VOCABULARY, LENGTH = 16_000, 128
PLAN_TARGET = 2.0
WITHOUT = ("torch._dynamo", "sympy")
"""What PyTorch imports for some ways to differentiate, and a run has no need of."""


def run(report: Report) -> None:
    """All cases, this checkout and the other in turn."""
    asked, other = report.asked, report.asked.other
    task = asked.digits()
    network = small_network(asked, task)
    rivals = RIVALS if find_spec("curvlinops") else ()
    if not rivals:
        report.say("curvlinops cannot be imported here: measured without it")
    sources = {"this": HERE / "src"} | ({} if other is None else {"other": other / "src"})
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits.safetensors"
        kept = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        images = {"pixels": task.train.pixels, "labels": task.train.labels}
        tests = {"test_pixels": task.test.pixels, "test_labels": task.test.labels}
        save_file({**images, **tests, **{f"weights.{name}": tensor for name, tensor in kept.items()}}, data)
        found = {case: {who: list[dict[str, Any]]() for who in sources} for case in (*RUNS, *rivals, *MODELS_BY_CASE)}
        for _ in range(1 if asked.quick else 2):
            for case, taken in found.items():
                if asked.quick and case.startswith("GPT-2 46M"):
                    continue
                for who, source in sources.items():
                    if who == "this" or case not in RIVALS:
                        taken[who].append(_apart(source, case, data))
    _runs(report, found)
    _plans(report, found)


Found = dict[str, dict[str, list[dict[str, Any]]]]


def _runs(report: Report, found: Found) -> None:
    table: list[Row] = []
    least = {
        (case, who): min(each["seconds"] for each in taken)
        for case in (*RUNS, *RIVALS)
        for who, taken in found.get(case, {}).items()
        if taken
    }
    for case, who in least:
        if taken := found[case][who]:
            row: Row = {"run": case, "checkout": who if case in RUNS else "-", "least s": least[case, who]}
            other, rival = least.get((case, "other")), least.get((RIVAL_OF.get(case, ""), "this"))
            row["over the other"] = least[case, who] / other if other and who == "this" else None
            row["over curvlinops"] = least[case, who] / rival if rival else None
            last = taken[-1]
            row |= {"products": last["products"], "checks": last["checks"], "residual": last["residual"]}
            row |= {"peak MB": min(each["peak"] for each in taken) / 1e6, "imported": last["imported"]}
            table.append(row)
    report.table("One query, all scores: processor seconds of `trace`", table, "runs")


def _plans(report: Report, found: Found) -> None:
    table: list[Row] = []
    for case, by_checkout in found.items():
        for who, taken in by_checkout.items():
            if case not in MODELS_BY_CASE or not taken:
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
    paths = [str(source), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "benchmarks.fixed", case, str(data), str(torch.get_num_threads())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=HERE)
    return json.loads(done.stdout.splitlines()[-1])


def _task(data: Path) -> tuple[ConvNet, TensorDataset, TensorDataset]:
    """The trained network, its training images and the test images."""
    tensors = load_file(data)
    pixels, labels = tensors["pixels"], tensors["labels"]
    model = ConvNet(pixels.shape[1:], classes=int(labels.max()) + 1)
    weights: dict[str, Tensor] = {
        name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")
    }
    model.load_state_dict(weights)
    test = TensorDataset(tensors["test_pixels"], tensors["test_labels"])
    return model.eval(), TensorDataset(pixels, labels), test


def _traced(case: str, data: Path) -> dict[str, Any]:
    """`trace` from its first line to its last."""
    from stagetrace import Chain, GaussNewton, Hessian, Lanczos, Query, Shift, Stage, trace
    from stagetrace.objectives import Classification

    model, train, test = _task(data)
    stage = Stage("pretrain", model=model, objective=Classification(), data=train)
    ways: dict[str, dict[str, Any]] = {
        RUNS[0]: {},
        RUNS[1]: {"curvature": Hessian(examples=HESSIAN_EXAMPLES), "solver": Lanczos(1e-3, rtol=1e-3)},
        RUNS[2]: {
            "curvature": GaussNewton(examples=HESSIAN_EXAMPLES),
            "solver": Lanczos(0.01, rtol=1e-3, filter=Shift),
        },
    }
    started = time.process_time()
    result = trace(Chain(stage), Query(test), **ways[case])
    seconds, solution = time.process_time() - started, result.solutions["pretrain"]
    return {
        "seconds": seconds,
        "products": solution.products,
        "checks": solution.checks,
        "residual": solution.relative_residual,
        "peak": peak(),
        "imported": ", ".join(name for name in WITHOUT if name in sys.modules) or "-",
    }


def _rival(case: str, data: Path) -> dict[str, Any]:
    """Conjugate gradients of curvlinops, then each example's derivative along their answer, as its users write it."""
    curvlinops: Any = import_module("curvlinops")
    identity: Any = import_module("curvlinops.examples").IdentityLinearOperator
    model, train, test = _task(data)
    few = list(seeded_subset(len(train), HESSIAN_EXAMPLES, 0))
    pixels, labels = train.tensors
    parameters, products = [p for p in model.parameters() if p.requires_grad], 0
    started = time.process_time()
    kind = curvlinops.HessianLinearOperator if case == RIVALS[0] else curvlinops.GGNLinearOperator
    matrix = kind(model, nn.CrossEntropyLoss(), parameters, [(pixels[few], labels[few])])
    multiply = matrix._matmat

    def counted(columns: list[Tensor]) -> list[Tensor]:
        nonlocal products
        products += columns[0].shape[-1]
        return multiply(columns)

    matrix._matmat = counted
    damped = matrix + 0.01 * identity([tuple(p.shape) for p in parameters], matrix.device, matrix.dtype)
    inverse = curvlinops.CGInverseLinearOperator(
        damped, max_iter=200, max_tridiag_iter=200, tolerance=1e-3, eps=0, stop_updating_after=1e-10
    )
    slopes = torch.autograd.grad(F.cross_entropy(model(test.tensors[0]), test.tensors[1]), parameters)
    answer = (inverse @ torch.cat([slope.flatten() for slope in slopes])).detach()
    parts = answer.split([p.numel() for p in parameters])
    at = {name: p.detach() for name, p in model.named_parameters()}
    along = {name: part.view_as(p) for (name, p), part in zip(at.items(), parts, strict=True)}
    for batch in range(0, len(pixels), 1024):
        inputs, targets = pixels[batch : batch + 1024], labels[batch : batch + 1024]
        jvp(
            lambda p, inputs=inputs, targets=targets: F.cross_entropy(
                functional_call(model, p, (inputs,)), targets, reduction="none"
            ),
            (at,),
            (along,),
        )
    seconds = time.process_time() - started
    return {
        "seconds": seconds,
        "products": products,
        "checks": 0,
        "residual": None,
        "peak": peak(),
        "imported": ", ".join(name for name in WITHOUT if name in sys.modules) or "-",
    }


def _planned(case: str) -> dict[str, Any]:
    """The plan of a language model's curvature, and two products with it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from stagetrace import Chain, GaussNewton, Hessian, Stage
    from stagetrace.objectives import NextToken
    from stagetrace.stages.gradient import batch_gradient

    name, matrix = MODELS_BY_CASE[case]
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
    case, data = sys.argv[1], Path(sys.argv[2])
    found = _planned(case) if case in MODELS_BY_CASE else (_rival if case in RIVALS else _traced)(case, data)
    print(json.dumps(found))
