"""A budget of memory: how it is typed, what is lowered for it, and that a refusal spends nothing."""

import pytest
import torch

from stagetrace import CG, Chain, Direct, GaussNewton, Hessian, Lanczos, Query, trace
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.errors import DescriptionError
from stagetrace.preflight import budget, fit
from stagetrace.preflight.budget import check_budget
from stagetrace.preflight.forecast import Forecast, Phase
from stagetrace.preflight.meter import Seconds
from stagetrace.preflight.units import read_size
from tests.preflight.test_forecast import chain, points

NOTHING_HELD = "stagetrace.preflight.budget.resident_bytes"


@pytest.mark.parametrize(
    ("typed", "size"),
    [("8GiB", 8 * 2**30), ("8GB", 8 * 10**9), ("500MiB", 500 * 2**20), ("1.5 GiB", 3 * 2**29), (12345, 12345)],
)
def test_sizes_are_read_with_their_units(typed: str | int, size: int) -> None:
    assert read_size(typed, "--budget") == size


@pytest.mark.parametrize(
    "typed", ["8", "8G", "8gib", "GiB", "-1GiB", "1e3MB", "8 GiB of it", "", "0GiB", 0, -5, True, 1.5]
)
def test_other_sizes_are_refused_in_one_line(typed: object) -> None:
    with pytest.raises(DescriptionError, match=r"^--budget ") as raised:
        read_size(typed, "--budget")  # pyright: ignore[reportArgumentType]
    assert "8GiB" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process held nothing but what is counted."""
    monkeypatch.setattr(NOTHING_HELD, lambda: 0)


def settings(curvature: object, solver: object, job: Chain) -> tuple[dict, dict]:
    return dict.fromkeys(job.names, curvature), dict.fromkeys(job.names, solver)


@pytest.mark.usefixtures("nothing_held")
@pytest.mark.parametrize(
    ("curvature", "solver"), [(GaussNewton(), Lanczos(0.01, rtol=1e-10)), (Hessian(), CG(5.0, rtol=1e-12))], ids=str
)
def test_a_budget_lowers_what_is_kept_and_not_the_scores(
    curvature: object, solver: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stagetrace.preflight.budget.SMALLEST", 64)
    monkeypatch.setattr("stagetrace.preflight.budget._scoring", lambda *_: 0)  # of so small a network the larger part
    job, query = chain(), Query(points(4, 2))
    plenty = fit(job, query, "8GiB", *settings(curvature, solver, job))
    assert (plenty.notes, plenty.curvature["a"], plenty.solver["a"]) == ((), curvature, solver)
    least = int(0.15 * plenty.memory)
    tight = fit(job, query, least, *settings(curvature, solver, job))
    assert tight.memory <= least < plenty.memory
    assert tight.notes
    cost = tight.curvature["a"].operator(job["a"]).cost()
    whole = curvature.operator(job["a"]).cost()  # pyright: ignore[reportAttributeAccessIssue]
    assert cost is not None
    assert cost.cached_bytes < whole.cached_bytes
    expected = trace(job, query, curvature=curvature, solver=solver)  # pyright: ignore[reportArgumentType]
    found = trace(job, query, curvature=tight.curvature, solver=tight.solver)
    for stage in job.names:
        torch.testing.assert_close(found[stage].values, expected[stage].values, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("nothing_held")
def test_the_dearest_part_decides_what_to_type() -> None:
    job = chain()
    with pytest.raises(DescriptionError, match=r"solving stage 'b' needs .* fewer queries at a time than 500"):
        fit(job, Query(points(500, 2), reduction="none"), 150_000, *settings(GaussNewton(), CG(0.1), job))
    with pytest.raises(DescriptionError, match=r"type --solve b=lanczos, or a budget of"):
        fit(job, Query(points(3, 2)), 5_000, *settings(GaussNewton(), Direct(0.1), job))
    needed = budget._scoring(job["b"], Query(points(3, 2)), 10**12, "budget")
    with pytest.raises(DescriptionError, match=r"scoring stage 'b' needs .*batch_size=\d+"):
        budget._scoring(job["b"], Query(points(3, 2)), needed - 1, "budget")


def test_a_refusal_makes_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[int]()
    monkeypatch.setattr(MeanCurvature, "apply", lambda self, vectors: made.append(1) or vectors)
    job = chain()
    with pytest.raises(DescriptionError, match=r"PyTorch, models and data hold .* already; type budget \d"):
        fit(job, Query(points(3, 2)), "2MiB", *settings(GaussNewton(), Lanczos(), job))
    assert made == []


def test_a_forecast_beyond_the_budget_is_refused() -> None:
    phases = (Phase("run", "start", Seconds(), 100 * 2**20), Phase("a", "solving", Seconds(), 700 * 2**20))
    check_budget(Forecast(phases), "1GiB", "--budget")
    with pytest.raises(DescriptionError, match=r"solving \(a\) is expected to take 700 MiB .* --budget 700MiB or more"):
        check_budget(Forecast(phases), "500MiB", "--budget")
