"""The larger size: every line of WikiText-2 of 5 to 200 words, 20,000 words of 100 numbers; scored, not validated.

Its first stage is left where Adam left it, far from a minimum, so its curvature is Gauss-Newton's with a damping that
is large: the scores stand for what a few more steps would do, and no retraining has confirmed them at this size.
"""

import time
from typing import Any

import torch

from benchmarks.memory import peak
from experiments.settings import Settings
from experiments.tracing import warnings_of
from experiments.word_vectors.data import Drawing
from experiments.word_vectors.lines import described
from experiments.word_vectors.stages import Size, read, trained
from stagetrace import GaussNewton, Hessian, Lanczos, trace
from stagetrace.progress import Progress
from stagetrace.solvers import Shift

LARGE = Size(
    20_000,
    100,
    None,
    None,
    Drawing(pairs=64, negatives=5),
    (1e-6, 1e-4),
    steps=640,
    rate=0.01,
    batch=64,
    dtype=torch.float32,
)
CURVATURE_EXAMPLES = 300


def scored_large(settings: Settings, progress: Progress) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Seconds, peak memory and work; and the ends of the ranking for the mean test loss."""
    started = time.perf_counter()
    corpora = read(settings, LARGE, settings.seed)
    reading = time.perf_counter() - started
    both = trained(corpora, LARGE, settings.seed, settings.out / "large", progress, settings.device)
    started, before = time.perf_counter(), peak()
    result = trace(
        both.chain,
        both.query,
        curvature={"pretrain": GaussNewton(CURVATURE_EXAMPLES, settings.seed), "finetune": Hessian()},
        solver={
            "pretrain": Lanczos(damping=1e-4, filter=Shift, rtol=1e-3, max_steps=40),
            "finetune": Lanczos(damping=0.0, rtol=1e-6),
        },
        progress=progress,
    )
    solution = result.solutions["pretrain"]
    facts = {
        "size": repr(LARGE),
        "words": len(corpora.vocabulary),
        "pairs": int(corpora.lines.tensors[3].sum()),
        "stages": both.facts,
        "pretrain_solution": {
            "system": str(solution.system),
            "status": solution.status.value,
            "products": solution.products,
            "relative_residual": solution.relative_residual,
        },
        "warnings": warnings_of(result),
        "seconds": {
            "reading": reading,
            "tracing": result.statistics["seconds"],
            "trace": time.perf_counter() - started,
        },
        "peak_bytes": {"before tracing": before, "in all": peak()},
    }
    return facts, described(corpora, result)
