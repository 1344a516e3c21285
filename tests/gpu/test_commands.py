"""Whole jobs on a GPU: many queries, rankings, an index, a recorded training, and the processes of `torchrun`."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from stagetrace import EKFAC, Chain, Direct, GaussNewton, Lanczos, Query, Shift, Stage, Trace, trace
from stagetrace.errors import StagetraceWarning
from stagetrace.index import build
from stagetrace.objectives import Classification
from stagetrace.results.parts import PART_EXAMPLES
from stagetrace.tracing import rank
from tests import jobs
from tests.curvature import test_ekfac_transformers
from tests.gpu.test_gpu import GPU, chain_on
from tests.index import test_words
from tests.replay.runs import Run, Stages

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use"),
    pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning"),  # the jobs' models are drawn
]

MANY: dict[str, dict[str, Any]] = {
    "sample space": {"curvature": GaussNewton(), "solver": Lanczos(0.05, 1e-8, filter=Shift, many="sample space")},
    "shared basis": {"curvature": GaussNewton(), "solver": Lanczos(0.05, 1e-8, filter=Shift, many="shared basis")},
    "separate": {"curvature": GaussNewton(), "solver": Lanczos(0.05, 1e-8, filter=Shift, many="separate")},
    "EK-FAC": {"curvature": EKFAC(), "solver": Direct(0.05, Shift)},
}


def wide_on(device: str) -> Chain:
    """As `chain_on`, one stage of a network large enough to be contracted layer by layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = torch.nn.Sequential(torch.nn.Linear(4, 256), torch.nn.Tanh(), torch.nn.Linear(256, jobs.CLASSES))
    data = jobs.examples(64, 0, torch.float32)
    return Chain(Stage("fit", model=body.to(device), objective=Classification(), data=data, batch_size=16))


@pytest.mark.parametrize("way", MANY)
def test_many_queries_are_those_of_the_cpu(way: str):
    query = Query(jobs.examples(24, 9), batch_size=8, reduction="none")
    there, here = (trace(chain_on(device), query, **MANY[way]) for device in (GPU, "cpu"))
    for name in here:
        wanted = here[name].values.double()
        torch.testing.assert_close(there[name].values.double(), wanted, rtol=0, atol=2e-6 * float(wanted.abs().max()))


def test_a_wide_network_and_its_ranking_are_those_of_the_cpu(tmp_path: Path):
    query = Query(jobs.examples(24, 9, torch.float32), batch_size=8, reduction="none")
    how: dict[str, Any] = {"curvature": GaussNewton(), "solver": Lanczos(0.05, 1e-5, filter=Shift)}
    there, here = (trace(wide_on(device), query, **how)["fit"].values for device in (GPU, "cpu"))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-3 * float(here.abs().max()))
    ranking = rank(wide_on(GPU), query, top=5, out=tmp_path / "ranking", **how)["fit"]
    torch.testing.assert_close(ranking.harmful_scores, there.topk(5, dim=1).values, rtol=1e-3, atol=1e-6)


def test_an_index_is_built_and_searched(tmp_path: Path):
    query = Query(jobs.examples(4, 9))
    how: dict[str, Any] = {"curvature": GaussNewton(), "solver": Direct(0.1)}
    found = build(chain_on(GPU), query, tmp_path / "index", **how)
    hits = found.search(query, top=3, rescore=40, **how)
    whole = trace(chain_on("cpu"), query, **how)
    for name in whole:
        torch.testing.assert_close(
            hits[name].ranking.harmful_scores.flatten().double(),
            whole[name].values.flatten().double().topk(3).values,
            rtol=1e-5,
            atol=1e-9,
        )


@pytest.mark.parametrize("tied", [True, False])
def test_an_index_by_words_is_that_of_the_cpu(tied: bool, tmp_path: Path):
    there, here = (test_words.job(tied) for _ in range(2))
    there[0].last.stage.model.to(GPU)
    chain, query = there[0].refreshed(), there[1]
    found = build(chain, query, tmp_path / "index", store="words", **test_words.ALL, **test_words.SOLVED)
    hits = found.search(query, top=3, rescore=30, **test_words.SOLVED)
    whole = trace(here[0], query, **test_words.SOLVED)
    scores = hits["language"].ranking.harmful_scores.double()
    torch.testing.assert_close(scores, whole["language"].values.topk(3, dim=1).values.double(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("words", [20, 60])
@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama", "mixtral"])
def test_ekfac_of_transformers_is_that_of_the_cpu(kind: str, words: int):
    here, there = (test_ekfac_transformers.bound_of(kind, words) for _ in range(2))
    there.stage.model.to(GPU)
    there = Chain(there.stage).last
    vector = torch.randn(here.trained.size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted, found = EKFAC().operator(here) @ vector, EKFAC().operator(there) @ vector.to(GPU)
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_training_that_was_recorded_on_a_gpu_is_replayed_there(dropout: float, tmp_path: Path):
    """Against the same training really run again on the GPU; the masks of dropout come from its own generator."""
    runs = Run(partial(torch.optim.AdamW, lr=0.02), dropout=dropout), Run(partial(torch.optim.SGD, lr=0.1))
    stages = Stages(runs, (12, 10), device=GPU)
    found = trace(stages.chain(tmp_path), stages.query())
    for stage, examples in enumerate(stages.examples):
        scores = found[f"stage{stage}"].values.cpu()
        for example in (0, examples - 1):
            slope = stages.slope(stage, example)
            torch.testing.assert_close(scores[:, example], slope, rtol=0, atol=1e-6 * float(scores.abs().max()))


def test_a_killed_job_on_a_gpu_goes_on(tmp_path: Path):
    """`score` as `torchrun` starts it, killed after some products, and again: NCCL for what lies on the GPU."""
    words = "-m", "stagetrace", "score", f"{jobs.FILE}:frozen_on_gpu", "--out", str(tmp_path / "run")
    log = {"STAGETRACE_TEST_LOG": str(tmp_path / "log"), "STAGETRACE_TEST_PART": str(PART_EXAMPLES)}
    assert jobs.torchrun(1, *words, **log, STAGETRACE_TEST_KILL="product 2 of pretrain").returncode
    again = jobs.torchrun(1, *words, **log)
    assert again.returncode == 0, again.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StagetraceWarning)
        chain, query, options = jobs.frozen()
        wanted = trace(chain, query, **options)
    found = Trace.load(tmp_path / "run")
    for name in wanted:
        torch.testing.assert_close(found[name].values, wanted[name].values, rtol=1e-6, atol=1e-9)
