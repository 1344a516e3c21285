"""The larger size: every line of WikiText-2 of 5 to 200 words, 20,000 words of 100 numbers; scored, not validated.

Its first stage is left where Adam left it, far from a minimum, so its curvature is Gauss-Newton's with a damping that
is large: the scores stand for what a few more steps would do, and no retraining has confirmed them at this size.
"""

import time

import torch

from benchmarks.memory import peak
from experiments import records
from experiments.checkpoints import Checkpoints
from experiments.estimators import shifted
from experiments.records import Record
from experiments.settings import Settings
from experiments.word_vectors.data import Drawing
from experiments.word_vectors.lines import described
from experiments.word_vectors.stages import Size, prepare
from stagetrace import GaussNewton, Hessian, Lanczos, trace
from stagetrace.progress import Progress

DRAWING = Drawing(pairs=64, negatives=5)
LARGE = Size(20_000, 100, None, None, DRAWING, (1e-6, 1e-4), steps=640, rate=0.01, batch=64, dtype=torch.float32)
CURVATURE_EXAMPLES = 300


def scored_large(settings: Settings, progress: Progress) -> tuple[Record, list[Record]]:
    """Seconds, peak memory and work; and the ends of the ranking for the mean test loss."""
    started = time.perf_counter()
    prepared = prepare(settings, LARGE, Checkpoints(settings.root / "large"), progress)
    reading = max(0.0, time.perf_counter() - started - sum(fact["seconds"] for fact in prepared.facts.values()))
    started, before = time.perf_counter(), peak()
    curvature = {"pretrain": GaussNewton(CURVATURE_EXAMPLES, settings.seed), "finetune": Hessian()}
    solver = {"pretrain": shifted(1e-4, rtol=1e-3, max_steps=40), "finetune": Lanczos(damping=0.0, rtol=1e-6)}
    result = trace(prepared.chain, prepared.query, curvature=curvature, solver=solver, progress=progress)
    spent = {"tracing": result.statistics["seconds"], "trace": time.perf_counter() - started}
    traced = records.of_trace(result, curvature, solver)
    kept = ("system", "status", "products", "relative_residual")
    facts = {
        "size": repr(LARGE),
        "words": len(prepared.data.reader),
        "pairs": int(prepared.chain.stages[0].data.tensors[3].sum()),
        "stages": prepared.facts,
        "pretrain_solution": {name: traced["solving"]["pretrain"][name] for name in kept},
        "warnings": traced["warnings"],
        "seconds": {"reading": reading, **spent},
        "peak_bytes": {"before tracing": before, "in all": peak()},
    }
    return facts, [described(prepared, result)]
