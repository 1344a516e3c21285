"""The preflight: its work is bounded, its sum is a bound, and its advice is what is left to do."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from stagetrace import CG, Chain, Direct, EarlyStopping, GaussNewton, Hessian, Lanczos, Normal, Proximal, Query, Stage
from stagetrace.curvature import Auto
from stagetrace.curvature.operator import DenseOperator, DiagonalOperator
from stagetrace.curvature.subset import ENOUGH
from stagetrace.objectives import Classification, Regression
from stagetrace.preflight import Finding, Level, inspect, work
from stagetrace.preflight.products import most_products
from stagetrace.preflight.stationary import stationarity
from stagetrace.preflight.work import SPECTRUM_STEPS, Look
from stagetrace.progress import Silent
from stagetrace.solvers import Shift, Solver, solve
from stagetrace.solvers.system import Spectrum
from tests.chains import BY_EACH_LINK, LINKS, chain_of, query_of
from tests.curvature.specimens import MLP
from tests.oracles import solved

MANY = ENOUGH + 500


class Counted(Sequence[tuple[Tensor, Tensor]]):
    """A data set that counts how often an example is read."""

    def __init__(self, items: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.items, self.reads = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        self.reads += 1
        return self.items[index]


def points(n: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    xs = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return [(x, x.sum().reshape(1) + e) for x, e in zip(xs, noise, strict=True)]


def line(data: Sequence[tuple[Tensor, Tensor]]) -> Stage:
    torch.manual_seed(0)
    return Stage("line", model=nn.Linear(3, 1).double(), objective=Regression(), data=data)


def looked_at(stage: Stage, curvature, solver: Solver) -> list[Finding]:
    chain = Chain(stage)
    query = Query(points(2) if isinstance(stage.data, Counted) else stage.data)
    return list(inspect(chain, query, {stage.name: curvature}, {stage.name: solver}, Silent()))


def only(found: list[Finding], what: str) -> Finding:
    (one,) = (finding for finding in found if finding.what == what)
    return one


def gradient_norm(stage: Stage, data: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Of the mean loss over these examples, by plain autograd."""
    xs, ys = (torch.stack(column) for column in zip(*data, strict=True))
    loss = (stage.model(xs) - ys).square().mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, tuple(stage.model.parameters()))]).norm().item()


# Work


def test_the_work_does_not_grow_with_the_data() -> None:
    reads = []
    for n in (MANY, 4 * MANY):
        data = Counted(points(n))
        looked_at(line(data), Auto(), Lanczos())
        reads.append(data.reads)
    assert reads[1] <= reads[0] + 64


def test_the_look_at_the_spectrum_is_bounded_by_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = MLP.bound()
    whole = Look.at(bound, Hessian().operator(bound), Silent())
    assert whole.whole
    monkeypatch.setattr(work, "OPERATIONS", 1.0)
    monkeypatch.setattr(work, "FEWEST", 3)
    part = Look.at(bound, Hessian().operator(bound), Silent())
    assert (part.examples, part.of, part.whole) == (3, whole.of, False)
    assert part.products <= SPECTRUM_STEPS
    assert part.seconds > 0


def test_few_examples_are_said_to_look_more_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = MLP.stage(name="line")
    assert "a subset looks more negative" not in only(looked_at(stage, Hessian(), Lanczos()), "curvature").text
    monkeypatch.setattr(work, "OPERATIONS", 1.0)
    monkeypatch.setattr(work, "FEWEST", 2)
    assert "over 2 of" in only(looked_at(stage, Hessian(), Lanczos()), "curvature").text


# What it says of the examples


def test_the_rule_is_said_where_it_leaves_examples_out() -> None:
    assert f"{ENOUGH:,} of {MANY:,} examples" in only(looked_at(line(points(MANY)), Auto(), Lanczos()), "examples").text
    assert not [f for f in looked_at(line(points(20)), Auto(), Lanczos()) if f.what == "examples"]


def test_the_mean_gradient_of_some_examples_comes_with_its_error() -> None:
    """At the minimum the mean gradient of 1,000 of many examples is no zero, and is not taken for one."""
    data = points(MANY)
    xs = torch.stack([torch.cat([x, torch.ones(1).double()]) for x, _ in data])
    best = torch.linalg.lstsq(xs, torch.stack([y for _, y in data])).solution
    stage = line(data)
    with torch.no_grad():
        stage.model.weight.copy_(best[:3].T)  # pyright: ignore[reportCallIssue]
        stage.model.bias.copy_(best[3])  # pyright: ignore[reportCallIssue]
    at_minimum = stationarity(Chain(stage)["line"], Lanczos(), Silent())
    assert at_minimum.level is Level.OK
    assert f"{ENOUGH:,} of {MANY:,} examples" in at_minimum.text
    said, error = float(at_minimum.text.split()[1].rstrip(",")), float(at_minimum.text.split()[-1])
    drawn = [data[index] for index in Auto().indices(Chain(stage)["line"])]
    assert said == pytest.approx(max(0.0, gradient_norm(stage, drawn) ** 2 - error**2) ** 0.5, rel=0.05, abs=error / 20)
    assert error > 0.3 * gradient_norm(stage, drawn)
    away = stationarity(Chain(line(data))["line"], Lanczos(), Silent())
    assert away.level is Level.WARNING


@pytest.mark.parametrize("n", [40, MANY])
def test_the_gradient_is_that_of_plain_autograd(n: int) -> None:
    stage = line(points(n))
    exact = gradient_norm(stage, stage.data)
    said = float(stationarity(Chain(stage)["line"], Lanczos(), Silent()).text.split()[1].rstrip(","))
    assert said == pytest.approx(exact, rel=0.01 if n == 40 else 0.1)


# Advice


def test_what_the_default_does_already_is_a_note_and_no_advice() -> None:
    found = only(looked_at(MLP.stage(name="line"), Auto(), Lanczos()), "curvature")
    assert found.level is Level.NOTE
    assert "negative curvature" in found.text
    assert "inverts Gauss-Newton" in found.text
    assert "--" not in found.text


@pytest.mark.parametrize("solver", [Lanczos(damping=0.0), CG(), Direct(), Normal(CG(), damping=1e-8)], ids=str)
def test_what_is_left_to_do_is_what_to_type(solver: Solver) -> None:
    found = only(looked_at(MLP.stage(name="line"), Hessian(), solver), "curvature")
    assert found.level is Level.WARNING
    assert "--solve line=lanczos:damping=auto,curvature=auto" in found.text
    assert "--solve line=cg:damping=" in found.text


@pytest.mark.parametrize(
    "solver", [Lanczos(damping=100.0), CG(damping=10.0), Direct(damping=10.0, filter=Shift)], ids=str
)
def test_a_damping_above_the_negative_end_is_no_warning(solver: Solver) -> None:
    found = only(looked_at(MLP.stage(name="line"), Hessian(), solver), "curvature")
    assert found.level is Level.NOTE
    assert "--" not in found.text


def test_early_stopping_assumes_no_minimum() -> None:
    early = EarlyStopping(3.0)
    default, hessian = (looked_at(MLP.stage(name="line"), curvature, early) for curvature in (Auto(), Hessian()))
    for found, level, words in (
        (default, Level.NOTE, "takes Gauss-Newton"),
        (hessian, Level.WARNING, "lets effects grow"),
    ):
        curvature, stationary = only(found, "curvature"), only(found, "stationarity")
        assert curvature.level is level
        assert "which early stopping does not assume; the solve " + words in curvature.text
        assert stationary.level is Level.OK
        assert stationary.text.endswith("not at a minimum, and none is assumed")
    assert only(looked_at(MLP.stage(name="line"), Auto(), Lanczos()), "stationarity").level is Level.WARNING


# Products


def look(eigenvalues: Tensor) -> Look:
    spectrum = Spectrum((float(eigenvalues.min()), float(eigenvalues.max())))
    return Look(spectrum, 20, 0, 0, 1.0, None)


SPECTRA = {
    "positive": torch.linspace(0.5, 40.0, 300, dtype=torch.float64),
    "hardly positive": torch.logspace(-2, 1.5, 300, dtype=torch.float64),
    "indefinite": torch.linspace(-2.0, 30.0, 300, dtype=torch.float64),
}
SOLVERS = [Lanczos(), Lanczos(damping=1e-2), Lanczos(damping=0.5, filter=Shift), CG(damping=0.1), Direct()]
SOLVERS += [EarlyStopping(3.0, rtol=1e-8), EarlyStopping(3.0, rtol=1e-8, memory=30_000)]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("eigenvalues", SPECTRA.values(), ids=SPECTRA.keys())
def test_a_solve_takes_no_more_products_than_were_said(eigenvalues: Tensor, solver: Solver) -> None:
    class BoundStage:
        """As much of one as is looked at."""

        own = torch.empty(300)

    BoundStage.trained = type("Space", (), {"size": 300})  # pyright: ignore[reportAttributeAccessIssue]
    operator = DenseOperator(torch.diag(eigenvalues)) if isinstance(solver, Direct) else DiagonalOperator(eigenvalues)
    most = most_products(BoundStage, operator, solver, look(eigenvalues))  # pyright: ignore[reportArgumentType]
    solution = solve(operator, torch.ones(300, dtype=torch.float64), solver)
    assert most is not None
    assert solution.products <= most


def test_products_times_seconds_and_one_total_are_said() -> None:
    found = looked_at(line(points(30)), GaussNewton(), Lanczos())
    assert " products x " in only(found, "solving").text
    assert [each.text.startswith("in all about ") for each in found if " in all" in f" {each.text}"] == [True]


def test_a_chain_of_two_is_looked_at_whole() -> None:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    second = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    data = [(x, torch.tensor(int(y > 0))) for x, y in points(12)]
    link = Proximal({"0.weight": "0.weight"}, alpha=0.1)
    chain = Chain(
        Stage("a", model=first, objective=Classification(), data=data),
        Stage("b", model=second, objective=Classification(), data=data, link=link),
    )
    settings = dict.fromkeys(chain.names, Auto()), dict.fromkeys(chain.names, Lanczos())
    found = list(inspect(chain, Query(data[:3], reduction="none"), *settings, Silent()))  # pyright: ignore[reportArgumentType]
    assert [f.where for f in found if f.what == "solving"] == ["a", "b"]
    assert "3 x " in next(f for f in found if f.what == "solving").text
    assert (found[-1].where, found[-1].what) == ("run", "plan")


@pytest.mark.parametrize("kind", LINKS)
def test_a_chain_by_each_link_is_said_to_be_at_its_minimum(kind: str) -> None:
    """The stationarity has the link's pull in it: without it, the stage would not look trained."""
    case = BY_EACH_LINK[kind][1]
    chain = chain_of(case, solved(case))
    settings = dict.fromkeys(chain.names, Hessian()), dict.fromkeys(chain.names, Direct())
    found = list(inspect(chain, query_of(case), *settings, Silent()))  # pyright: ignore[reportArgumentType]
    for text in (finding.text for finding in found if finding.what == "stationarity"):
        assert float(text.split()[1].rstrip(",")) < 1e-12
    moved = [finding.text for finding in found if finding.what == "distance"]
    assert len(moved) == (0 if LINKS[kind].metric is None else 1)
    assert all(text.startswith("shared parameters changed by") for text in moved)
    assert [text.endswith("; alpha 0.5") for text in moved] == ([True] if kind == "proximal" else [False] * len(moved))
