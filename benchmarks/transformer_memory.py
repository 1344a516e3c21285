"""Part of `transformer`: what looking how to multiply costs, and what rounded products and dropped activations change.

Plans are of a GPT-2 of 51 million parameters over two sequences of 128 tokens. Operations are multiply-adds, counted as
they are made; memory is that of tensors as they are made and let go, so that both repeat; seconds are the processor's.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.products import counted
from benchmarks.report import Report, Row
from benchmarks.setting import batch_of, parameters
from benchmarks.timing import Work, in_turn
from stagetrace import Stage
from stagetrace.curvature.gauss_newton import gauss_newton_retained_graph
from stagetrace.curvature.plan import Matrix, make_plan
from stagetrace.curvature.probe import BY_REVERSE, RETAINED
from stagetrace.objectives import MaskedToken, NextToken
from stagetrace.preflight.live_tensors import LiveTensors
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.gradient import batch_gradient
from stagetrace.stages.risk import Risk
from stagetrace.tracing.contract import forward_mode

__all__ = ["dropped", "planning", "rounded"]

MATRICES: tuple[Matrix, ...] = ("Hessian", "GaussNewton")
GRADIENTS, OWN, ERROR, HALF = 2.0, 1.1, 0.02, 0.5
"""Aims: a plan's gradients; its memory over the product's own; errors of rounded products; a gradient's memory."""

MIB = 2**20


def planning(report: Report, model: Callable[..., Any]) -> None:
    """make_plan over a gradient of two sequences, and over the memory of a product with its vector."""
    quick, table = report.asked.quick, list[Row]()
    words, width, layers = (2000, 64, 2) if quick else (50_257, 512, 8)
    risk = risk_of(model("GPT-2", 128, width, layers, words), words, report.asked.seed, 2)
    two, one = (batch_of(risk, list(range(number))) for number in (2, 1))
    for matrix in MATRICES:
        works: dict[str, Work] = {
            "gradient": lambda: batch_gradient(risk, two),
            "plan": lambda matrix=matrix: make_plan(risk, matrix, range(2), 2, 2 * 2**30),
        }
        times = in_turn(works, report.asked.repetitions(2), warmups=1, clock=time.process_time)
        own = max(_peak(lambda way=way: way(risk, one)(torch.randn(risk.trained.size, 1))) for way in _ways(matrix))
        table.append(
            {
                "model": f"GPT-2, {parameters(risk.evaluation.model):,} parameters",
                "plan of": matrix,
                "s": times["plan"].least,
                "gradients of two sequences, by the clock": times["plan"].least / times["gradient"].least,
                "counted": counted(works["plan"]) / counted(works["gradient"]),
                "MiB": _peak(works["plan"]) / MIB,
                "over a product's own": _peak(works["plan"]) / own,
            }
        )
    report.table("Looking how to multiply, over two sequences of 128 tokens", table, "plans")
    report.target("a plan's operations, in gradients of two sequences", max(r["counted"] for r in table), GRADIENTS)
    report.target("a plan's memory over a product's own", max(r["over a product's own"] for r in table), OWN)


def rounded(report: Report, model: Callable[..., Any], shapes: tuple[str, ...]) -> None:
    """bfloat16 products beside none: errors over the exact one's size, and seconds."""
    table = list[Row]()
    for shape in shapes:
        net = model(shape, 128, 64 if report.asked.quick else 256, 2 if report.asked.quick else 4)
        half, exact = (risk_of(net, 2000, report.asked.seed, 2, shape=shape, precision=p) for p in ("bf16", None))
        batch = batch_of(exact, [0, 1])
        vector = torch.randn(exact.trained.size, 1, generator=torch.Generator().manual_seed(report.asked.seed))
        what: dict[str, Callable[[Risk], Tensor]] = {
            "gradient": lambda risk, batch=batch: batch_gradient(risk, batch).trained,
            **{
                f"{matrix} product": lambda risk, batch=batch, vector=vector, matrix=matrix: RETAINED[matrix](
                    risk, batch
                )(vector)
                for matrix in MATRICES
            },
        }
        row: Row = {"shape": shape}
        for name, work in what.items():
            works: dict[str, Work] = {
                "exact": lambda work=work, exact=exact: work(exact),
                "half": lambda work=work, half=half: work(half),
            }
            times = in_turn(works, report.asked.repetitions(3), warmups=1, clock=time.process_time)
            row[f"{name}, error"] = _apart(work(half), work(exact))
            row[f"{name}, s over float32's"] = times["half"].least / times["exact"].least
        along, size = (forward_mode(risk, batch, vector)[1] for risk in (half, exact)), batch_gradient(exact, batch)
        ours, theirs = along
        row["derivatives along a vector, error over the gradient's norm"] = float(
            (ours - theirs).abs().max() / size.trained.norm()
        )
        table.append(row)
    report.table("Matrix products in bfloat16, all else in float32", table, "precision")
    worst = max(value for row in table for name, value in row.items() if str(name).endswith("error"))
    report.target("relative error of gradients and products in bfloat16", worst, ERROR)


def dropped(report: Report, model: Callable[..., Any], shapes: tuple[str, ...]) -> None:
    """Blocks with gradient checkpointing on, in eval mode, beside blocks that keep their activations."""
    table = list[Row]()
    for shape in shapes:
        peaks, seconds = dict[str, dict[str, float]](), dict[str, dict[str, float]]()
        for kind in ("kept", "dropped"):
            net = model(shape, 128, 64 if report.asked.quick else 256, 4 if report.asked.quick else 8)
            if kind == "dropped":
                net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            risk = risk_of(net, 2000, report.asked.seed, 8, shape=shape)
            batch, vector = batch_of(risk, list(range(8))), torch.randn(risk.trained.size, 1)
            works: dict[str, Work] = {
                "gradient": lambda risk=risk, batch=batch: batch_gradient(risk, batch),
                "GaussNewton product": lambda risk=risk, batch=batch, vector=vector: gauss_newton_retained_graph(
                    risk, batch
                )(vector),
            }
            times = in_turn(works, report.asked.repetitions(3), warmups=1, clock=time.process_time)
            peaks[kind] = {name: _peak(work) / MIB for name, work in works.items()}
            seconds[kind] = {name: each.least for name, each in times.items()}
        table += [
            {
                "shape": shape,
                "work": name,
                "MiB with activations": peaks["kept"][name],
                "MiB without": peaks["dropped"][name],
                "memory": peaks["dropped"][name] / peaks["kept"][name],
                "seconds": seconds["dropped"][name] / seconds["kept"][name],
            }
            for name in peaks["kept"]
        ]
    report.table("Activations dropped and computed anew, 8 sequences of 128 tokens", table, "recomputed")
    gradients = [row["memory"] for row in table if row["work"] == "gradient"]
    report.target("a gradient's memory without activations over that with them", max(gradients), HALF)


def risk_of(model: Any, words: int, seed: int, sequences: int, *, shape: str = "GPT-2", precision: Any = None) -> Risk:
    """Sequences of 128 random tokens; of BERT every token is predicted."""
    ids = torch.randint(words, (sequences, 128), generator=torch.Generator().manual_seed(seed))
    data = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in ids]
    objective = MaskedToken() if shape == "BERT" else NextToken()
    stage = Stage("only", model=model, objective=objective, data=data, precision=precision)
    return BoundStage.of(stage, None).risk


def _ways(matrix: Matrix) -> list[Callable[..., Any]]:
    return list(dict.fromkeys((RETAINED[matrix], BY_REVERSE[matrix])))


def _peak(work: Work) -> int:
    with LiveTensors() as seen:
        work()
    return seen.peak


def _apart(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / right.norm())
