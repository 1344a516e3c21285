"""Small traces with every kind of field filled in."""

from collections.abc import Callable

import pytest
import torch

import stagetrace.results.parts as part_module
from stagetrace.results import Scores, Trace
from stagetrace.solvers import Equation, Tikhonov
from stagetrace.solvers.base import Solution, Status
from stagetrace.solvers.system import Spectrum


def make_solution(seed: int = 0, status: Status = Status.CONVERGED, dtype: torch.dtype = torch.bfloat16) -> Solution:
    value = torch.randn(7, 2, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return Solution(
        value=value,
        system=Equation(Tikhonov(0.01)),
        relative_residuals=(0.1 + 0.2, 1e-300),
        products=40,
        checks=2,
        steps=20,
        statuses=(Status.CONVERGED, status),
        tolerance=1e-6,
        spectrum=Spectrum((-0.1, 1 / 3, 7.0)),
        notes=("a note", "naïve"),
    )


def make_scores(stage: str, n: int = 7, n_queries: int | None = None, parts: bool = True, seed: int = 0) -> Scores:
    shape = (n,) if n_queries is None else (n_queries, n)
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(shape, generator=generator, dtype=torch.float64)
    head = torch.randn(shape, generator=generator, dtype=torch.float64)
    return Scores(stage, shared + head, shared, head) if parts else Scores(stage, shared)


def make_trace(n: int = 7, n_queries: int | None = None, parts: bool = True) -> Trace:
    return Trace(
        scores={
            "pretrain": make_scores("pretrain", n, n_queries, parts, 1),
            "finetune": make_scores("finetune", 3, n_queries, parts, 2),
        },
        solutions={"pretrain": make_solution(1), "finetune": make_solution(2, Status.MAX_STEPS, torch.float32)},
        description={"chain": {"pretrain": {"model": "c0ffee", "damping": 0.01}}, "query": ["f00d", None]},
        statistics={"seconds": 1.5, "reliability": "nan"},
    )


@pytest.fixture
def solution() -> Callable[..., Solution]:
    return make_solution


@pytest.fixture
def scores() -> Callable[..., Scores]:
    return make_scores


@pytest.fixture
def trace() -> Callable[..., Trace]:
    return make_trace


@pytest.fixture
def three_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of three examples, so that a small trace has several."""
    monkeypatch.setattr(part_module, "PART_EXAMPLES", 3)
