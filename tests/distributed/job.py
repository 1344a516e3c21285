"""A job that traces every case of `CASES` into folders of their own, in however many processes it finds itself.

STAGETRACE_TEST_OUT=DIR torchrun --nproc-per-node 2 -m stagetrace score tests/distributed/job.py:every --out DIR/last
"""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stagetrace import (
    CG,
    EKFAC,
    Chain,
    Direct,
    Frozen,
    GaussNewton,
    Hessian,
    Identity,
    Lanczos,
    Proximal,
    Query,
    Shift,
    Stage,
    trace,
)
from stagetrace.errors import StagetraceWarning
from stagetrace.objectives import NextToken
from tests import jobs

Job = tuple[Chain, Query, Mapping[str, Any]]

KEPT, MOVED = Frozen("embedding"), Proximal("embedding", alpha=0.1)
EXACT = {"curvature": GaussNewton(), "solver": Direct()}


def queries(n: int = 6, **settings: Any) -> Query:
    return Query(jobs.examples(n, 9), batch_size=4, **settings)


def sentences(n: int) -> Job:
    """A language model of bigrams; of its tokens a few are kept."""
    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6)).double()
    jobs.redraw(model, 0)
    words = torch.randint(6, (n, 5), generator=torch.Generator().manual_seed(0))
    stage = Stage("fit", model=model, objective=NextToken(), data=words, batch_size=5)
    return Chain(stage), Query(words[:3]), {"curvature": Identity(), "solver": Lanczos(damping=0.0), "tokens": 30}


# Sizes are uneven; batches have 5 examples, so 4 examples are fewer batches than processes.
CASES: dict[str, Callable[[], Job]] = {
    "frozen": lambda: (jobs.chain(KEPT, sizes=(37, 23)), queries(), EXACT | {"parts": True}),
    "proximal": lambda: (jobs.chain(MOVED, sizes=(37, 23)), queries(), EXACT | {"parts": True}),
    "three": lambda: (jobs.chain(MOVED, KEPT, sizes=(37, 4, 21)), queries(), EXACT),
    "each query": lambda: (jobs.chain(KEPT, sizes=(11, 23)), queries(3, reduction="none"), EXACT | {"parts": True}),
    "sum of queries": lambda: (jobs.chain(MOVED, sizes=(11, 23)), queries(7, reduction="sum"), EXACT),
    "fewer examples than processes": lambda: (jobs.chain(MOVED, KEPT, sizes=(1, 23, 1)), queries(1), EXACT),
    "part of the examples": lambda: (
        jobs.chain(KEPT, sizes=(37, 23)),
        queries(),
        {"curvature": {"pretrain": Hessian(examples=7), "finetune": Identity()}, "solver": Lanczos(damping=0.1)},
    ),
    "EK-FAC": lambda: (
        jobs.chain(MOVED, sizes=(37, 23)),
        queries(),
        {"curvature": EKFAC(exact=4), "solver": Direct(0.05, Shift)},
    ),
    "tokens": lambda: sentences(301),
    "conjugate gradients, the last stage only": lambda: (
        jobs.chain(MOVED, sizes=(37, 23)),
        queries(),
        {"curvature": GaussNewton(), "solver": CG(damping=0.01, rtol=1e-10), "of": "finetune"},
    ),
}


def every() -> Job:
    """Trace every case, and leave the first to the command line."""
    out = Path(os.environ["STAGETRACE_TEST_OUT"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StagetraceWarning)
        for name, case in CASES.items():
            chain, query, options = case()
            trace(chain, query, out=out / name, **options)
    return CASES["frozen"]()
