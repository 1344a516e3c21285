"""What a plan says of a run: counted parts against what is really made, and a rehearsal against the run."""

from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

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
    Query,
    Shift,
    Stage,
    trace,
)
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.operator import DiagonalOperator, SumOperator
from stagetrace.curvature.plan import TRACED_BYTES
from stagetrace.objectives import Classification
from stagetrace.preflight import Forecast, predict, rehearsal
from stagetrace.preflight.forecast import Phase
from stagetrace.preflight.live_tensors import LiveTensors, growth
from stagetrace.preflight.meter import Seconds, metered, resident_bytes
from stagetrace.preflight.solve_estimate import SolveEstimate
from stagetrace.preflight.timed_operator import OverExamples, TimedOperator
from stagetrace.preflight.tracing_cost import with_tracing
from stagetrace.preflight.vectors import solver_bytes
from stagetrace.solvers import solve
from stagetrace.solvers.basis import Basis


def points(n: int, seed: int = 0) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=draw)
    return TensorDataset(torch.randn(n, 6, generator=draw).double() + labels.unsqueeze(1), labels)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def chain(n: int = 60) -> Chain:
    torch.manual_seed(0)
    first, second = network(), network()
    shared = ["0.weight", "0.bias"]
    for name in shared:
        second.get_parameter(name).requires_grad_(False).copy_(first.get_parameter(name).detach())
    link = Frozen({name: name for name in shared})
    return Chain(
        Stage("a", model=first, objective=Classification(), data=points(n), batch_size=16),
        Stage("b", model=second, objective=Classification(), data=points(n, 1), batch_size=16, link=link),
    )


def phase(found: Forecast, where: str, what: str) -> Phase:
    (one,) = (each for each in found.phases if (each.where, each.what) == (where, what))
    return one


# Counted bytes


def test_live_bytes_are_those_of_the_tensors_that_are_held() -> None:
    before = torch.ones(500)
    with LiveTensors() as seen:
        double = before.double()
        view = double[100:]
        assert (seen.now, seen.peak) == (4000, 4000)
        del double
        assert seen.now == 4000  # the view holds all of it
        other = view + 1
        assert seen.now == 7200
        del view
        before.add_(1)  # in place, into what was there before
        assert (seen.now, seen.peak) == (3200, 7200)
        del other
        assert seen.now == 0


def test_growth_tells_what_an_example_adds_from_what_it_does_not() -> None:
    weight = torch.randn(30, 50).double()

    def work(n: int) -> Tensor:
        copied = weight.clone()
        return torch.zeros(n, 30).double() @ copied

    assert growth(work) == (30 * 50 * 8, (30 + 50) * 8)  # the zeros in float32 are gone by then


def test_a_basis_takes_the_bytes_that_are_counted() -> None:
    with LiveTensors() as seen:
        basis = Basis(torch.zeros(1000, dtype=torch.float64), 40)
        before = seen.now
        for _ in range(40):
            basis.keep(torch.ones(1000, dtype=torch.float64))
    assert seen.now - before == 40 * 1000 * 8
    assert solver_bytes(Lanczos(max_steps=40), 1000, torch.float64, 1) == 42 * 1000 * 8


@pytest.mark.parametrize(
    "solver",
    [Lanczos(0.1, max_steps=30), Lanczos(0.1, max_steps=300, memory=200_000), CG(0.1), Direct(0.1)],
    ids=str,
)
@pytest.mark.parametrize("columns", [1, 3])
def test_a_solver_holds_no_more_than_is_counted(solver: Lanczos | CG | Direct, columns: int) -> None:
    """Beside the right-hand sides, the answers and the products on their way."""
    size = 400
    operator = DiagonalOperator(torch.linspace(0.5, 40.0, size, dtype=torch.float64))
    b = torch.randn(size, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with LiveTensors() as seen:
        solve(operator, b, solver)
    counted = solver_bytes(solver, size, torch.float64, columns)
    assert seen.peak <= counted + 10 * columns * size * 8
    if not isinstance(solver, Direct):  # which knows the eigenvectors of a diagonal
        assert seen.peak >= counted / 8


# Seconds and products


@pytest.mark.filterwarnings("ignore::stagetrace.errors.CurvatureWarning")
def test_a_rehearsal_over_all_examples_makes_the_products_of_the_run(tmp_path: Path) -> None:
    job, query = chain(), Query(points(5, 2))
    said, ran = predict(job, query), trace(job, query, out=tmp_path / "run")
    for stage, solution in ran.solutions.items():
        solving = phase(said, stage, "solving")
        assert solving.products == solution.products + solution.checks
        assert "over all 60 examples" in solving.how
    disk = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert said.disk == pytest.approx(disk, rel=0.15)
    assert said.seconds.cpu == pytest.approx(sum(each.seconds.cpu for each in said.phases))
    assert said.memory == max(each.memory for each in said.phases) >= resident_bytes() / 2
    assert [each.where for each in said.phases if each.what == "solving"] == ["b", "a"]


@pytest.mark.parametrize(
    ("curvature", "solver"),
    [
        (GaussNewton(), Lanczos(0.01, filter=Shift)),
        (GaussNewton(), CG(0.01)),
        (EKFAC(), Direct("auto", Shift)),
        (Hessian(), Direct(0.1)),
        (Identity(), Direct()),
    ],
    ids=str,
)
def test_a_rehearsal_over_some_examples_says_so(
    curvature: GaussNewton | EKFAC | Hessian | Identity,
    solver: Lanczos | CG | Direct,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rehearsal, "OPERATIONS", 1e4)
    found = predict(chain(), Query(points(3, 2), reduction="none"), curvature=curvature, solver=solver)
    solving = phase(found, "a", "solving")
    if isinstance(curvature, Identity):
        assert "none of them over examples" in solving.how
    else:
        assert "over 8 of 60 examples" in solving.how
    assert solving.seconds.cpu >= 0
    assert phase(found, "a", "scoring").disk == 0
    assert phase(found, "a", "writing").disk > 0


def test_tracing_is_in_the_plan_of_a_run_that_will_trace() -> None:
    """Once, in seconds and in memory; a run that ends before tracing pays has none of it."""
    bound = chain()["a"]
    whole, small = (GaussNewton(examples).operator(bound) for examples in (None, 10))
    assert isinstance(whole, SumOperator)
    assert isinstance(whole.left, MeanCurvature)
    whole.left.plan = replace(whole.left.plan, traced_from=30)
    before = Seconds(50.0, 50.0)
    found = SolveEstimate(torch.zeros(0), None, before, Seconds(), 0, 10, 60, 50, True, 0)
    assert with_tracing(found, small, whole, 29, 60) is found
    later = with_tracing(found, small, whole, 50, 60)
    kept = TRACED_BYTES["GaussNewton"] * whole.left.plan.cached_bytes
    assert later.over.cpu > 29.0  # 29 of 50 products as before
    assert later.peak >= resident_bytes() / 2 + kept / 4


@pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")
def test_a_rehearsal_that_is_cut_short_goes_on_in_thought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "OPERATIONS", 1e4)
    monkeypatch.setattr(rehearsal, "FEWEST", 20)
    solver = CG(1e-3, rtol=1e-10, max_steps=30)
    found = phase(predict(chain(), Query(points(3, 2)), curvature=GaussNewton(), solver=solver), "a", "solving")
    assert "cut short" in found.how
    assert 5 < found.products <= 31


def test_residuals_that_fall_geometrically_are_continued() -> None:
    """A solve that was cut short after m steps needs log(rtol) / log(rate) of them."""
    history = [float("nan")] * 10 + [0.5**step for step in range(1, 9)]
    needed = log(1e-4) / log(0.5)
    assert rehearsal._continued(history, 1e-4, CG()) * len(history) == pytest.approx(10 + needed)
    assert rehearsal._continued(history, 1e-4, CG(max_steps=9)) * len(history) < 10 + needed
    assert rehearsal._continued([1.0, 1.0, 1.0, 1.0], 1e-4, CG(max_steps=40)) == 10.0


def test_what_goes_over_examples_is_told_from_the_rest() -> None:
    seen = OverExamples()
    inner = DiagonalOperator(torch.arange(1.0, 5.0).double())
    timed = TimedOperator(inner, seen)
    assert torch.equal(timed @ torch.ones(4, 2).double(), inner @ torch.ones(4, 2).double())
    assert (seen.products, timed.products, timed.psd_approximation, len(timed.parts())) == (2, 2, None, 1)
    with metered() as taken:
        solve(timed, torch.ones(4).double(), CG())
    assert 0 < seen.seconds.cpu <= taken.seconds.cpu + seen.seconds.cpu
    assert seen.products > 2


def test_a_peak_is_that_of_the_block() -> None:
    with metered() as taken:
        held = torch.ones(2**23).double()  # 64 MiB
        del held
    with metered() as after:
        pass
    assert taken.peak - after.peak > 50 * 2**20
    assert taken.seconds.cpu > 0


def test_phases_add_up_in_seconds_and_disk_and_not_in_memory() -> None:
    one = Phase("a", "solving", Seconds(1.0, 2.0), 5 * 2**20, 100, "counted")
    found = Forecast((one, replace(one, where="b", memory=2**20)))
    assert (found.seconds, found.memory, found.disk) == (Seconds(2.0, 4.0), 5 * 2**20, 200)
    assert "about 2.0 s of the processor (4.0 s on the clock); 5 MiB of memory at its peak (solving, a)" in found.text


class LooksIntoTheData(nn.Module):
    """A branch that a trace cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.tanh(self.layer(x))
        return out if bool(out.detach().abs().max() < 2) else 2 * out


def test_a_model_that_cannot_be_traced_keeps_its_graphs_in_the_plan_too() -> None:
    stage = Stage("a", model=LooksIntoTheData(), objective=Classification(), data=points(60, 1))
    whole, small = (GaussNewton(examples).operator(Chain(stage)["a"]) for examples in (None, 10))
    assert isinstance(whole, SumOperator)
    assert isinstance(whole.left, MeanCurvature)
    whole.left.plan = replace(whole.left.plan, traced_from=30)
    found = SolveEstimate(torch.zeros(0), None, Seconds(50.0, 50.0), Seconds(), 0, 10, 60, 50, True, 0)
    assert with_tracing(found, small, whole, 50, 60) is found
