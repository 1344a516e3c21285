"""`solvers`: products with the Hessian until `(H^2 + damping I) x = H b` is solved to a given true error.

The setting: the trained network of 11,780 parameters, the Hessian of the mean loss over 1,000 of its examples, b the
gradient of the mean test loss. The true error is `|x - x*| / |x*|` against a reference x* in float64.

The work, counted: k steps of conjugate gradients on the normal equations take 2k + 1 products and search the odd powers
`Hb, H^3 b, ..., H^(2k-1) b`. A Lanczos run of m products searches all of `b, Hb, ..., H^(m-1) b`: at m = 2k it has
every direction that those 2k + 1 products gave and more, so the ratio of products stays below 1 but for the different
norms that the two minimise. Where even powers serve as well as odd ones, m = k is enough and the ratio 1/2.

Products are counted by the solvers themselves. An answer after k steps comes from the public solver with `max_steps=k`
and a tolerance that it cannot reach; equal products are remembered between such solves, and those that a solver
spends on measuring its answer are not counted on either side. The least k for each error is found by doubling
and bisection, which takes the error to fall with the steps. A floor is the least error of all answers seen up to the
limit of steps; it and the short recurrence are rounding's business, and measured in float32 only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, final

import torch
from torch import Tensor, nn

from benchmarks.report import Report, Row
from benchmarks.setting import risk_of, small_network
from benchmarks.timing import Work, in_turn
from experiments.tasks import Task
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.operator import LinearOperator
from stagetrace.curvature.subset import seeded_subset
from stagetrace.errors import SolveError
from stagetrace.solvers import CG, Lanczos, Normal, Solution, Solver, solve
from stagetrace.stages.gradient import mean_gradient

DAMPINGS = (1e-2, 1e-4, 1e-6)
ERRORS = (1e-1, 1e-2, 1e-3, 1e-4)
DTYPES = (torch.float64, torch.float32)
TARGET = 0.5
RESIDUAL = 1e-10
UNREACHABLE = 1e-15
TIMED_DAMPING, TIMED_ERROR = 1e-2, 1e-3

SHORT = "Lanczos, short recurrence"

Steps = Callable[[float, int], Solver]

SOLVERS: dict[str, Steps] = {
    "Lanczos": lambda damping, steps: Lanczos(damping, rtol=UNREACHABLE, max_steps=steps),
    SHORT: lambda damping, steps: Lanczos(damping, UNREACHABLE, steps, memory=1),
    "Normal(CG)": lambda damping, steps: Normal(CG(rtol=UNREACHABLE, max_steps=steps), damping),
}


def run(report: Report) -> None:
    """The reference, then every damping, precision and solver."""
    asked = report.asked
    task = asked.digits()
    model = small_network(asked, task)
    systems = {dtype: System.of(model, task, asked.hessian_examples, asked.seed, dtype) for dtype in DTYPES}
    references = _references(report, systems[torch.float64], 200 if asked.quick else 1000)
    limit = 64 if asked.quick else 400
    needed: dict[tuple[float, torch.dtype, str], Search] = {}
    table: list[Row] = []
    for damping, (reference, usable) in references.items():
        for dtype, system in systems.items():
            for name, steps in SOLVERS.items():
                if dtype == torch.float64 and name == SHORT:
                    continue
                search = Search(system, reference, lambda k, steps=steps, damping=damping: steps(damping, k), limit)
                needed[damping, dtype, name] = search
                row: Row = {"damping": f"{damping:g}", "precision": _word(dtype), "solver": name}
                row |= {f"to {error:g}": search.products(error) for error in ERRORS}
                floor = search.floor if dtype == torch.float32 else None
                table.append(row | {"floor": floor, "reference": "sound" if usable else "NOT converged"})
    report.table("Products to a true relative error", table, "products")
    report.table("Lanczos / Normal(CG), products", _ratios(needed), "ratios")
    _targets(report, needed)
    _seconds(report, systems[torch.float32], needed)


@final
class Remembering(LinearOperator):
    """An operator that multiplies no vector twice: solves that begin alike share their products."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self._known: dict[bytes, Tensor] = {}

    def apply(self, vectors: Tensor) -> Tensor:
        return torch.stack([self._one(vector.contiguous()) for vector in vectors.unbind(dim=1)], dim=1)

    def _one(self, vector: Tensor) -> Tensor:
        key = blake2b(vector.cpu().numpy().tobytes(), digest_size=16).digest()
        if key not in self._known:
            self._known[key] = self.operator @ vector
        return self._known[key]


@final
@dataclass(frozen=True)
class System:
    """The Hessian and the right-hand side in one precision."""

    operator: LinearOperator
    remembering: LinearOperator
    rhs: Tensor

    @staticmethod
    def of(model: nn.Module, task: Task, examples: int, seed: int, dtype: torch.dtype) -> "System":
        own = type(model)(task.train.pixels.shape[1:], len(task.classes)).to(task.train.pixels.device, dtype)
        own.load_state_dict(model.state_dict())
        risk = risk_of(own, task.train.dataset)
        chosen = seeded_subset(len(task.train), examples, seed)
        operator = MeanCurvature.planned(risk, "Hessian", chosen, 8 * 2**30)
        rhs = mean_gradient(risk_of(own, task.test.dataset)).trained[:, 0]
        return System(operator, Remembering(operator), rhs)


@final
@dataclass
class Search:
    """How many products one solver takes to each error."""

    system: System
    reference: Tensor
    solver: Callable[[int], Solver]
    limit: int
    seen: dict[int, tuple[float, int]] = field(default_factory=dict[int, tuple[float, int]])

    def at(self, steps: int) -> tuple[float, int]:
        """True relative error and products after so many steps."""
        if steps not in self.seen:
            solution = solve(self.system.remembering, self.system.rhs, self.solver(steps))
            gap = solution.value.double() - self.reference
            self.seen[steps] = (float(gap.norm() / self.reference.norm()), solution.products)
        return self.seen[steps]

    def steps(self, error: float) -> int | None:
        """The fewest steps to an error; None where the limit comes first."""
        low, high = 0, 1
        while self.at(high)[0] > error:
            if high == self.limit:
                return None
            low, high = high, min(2 * high, self.limit)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.at(middle)[0] <= error else (middle, high)
        return high

    def products(self, error: float) -> int | None:
        steps = self.steps(error)
        return None if steps is None else self.at(steps)[1]

    @property
    def floor(self) -> float:
        """The least error within the limit of steps."""
        self.at(self.limit)
        return min(error for error, _ in self.seen.values())


def _references(report: Report, system: System, steps: int) -> dict[float, tuple[Tensor, bool]]:
    """The float64 answer for each damping, all from one run, and whether its residual is small enough."""
    if system.rhs.dtype != torch.float64:
        raise SolveError("the reference must be solved in float64")
    solver = Lanczos(rtol=RESIDUAL / 2, max_steps=steps)
    solutions = solver.sweep(system.remembering, system.rhs, DAMPINGS)
    table: list[Row] = []
    for damping, solution in zip(DAMPINGS, solutions, strict=True):
        row = {"damping": f"{damping:g}", "steps": solution.steps, "residual": solution.relative_residual}
        table.append(row | {"bound on the error": _bound(solution, damping, system)})
    report.table(f"Reference: Lanczos in float64, every vector kept, residual below {RESIDUAL:g}", table, "reference")
    spectrum = solutions[0].spectrum
    if spectrum is not None:
        report.fields["spectrum"] = {"smallest": spectrum.smallest, "largest": spectrum.largest}
        report.say(f"eigenvalues of H: {spectrum.smallest:.3g} to {spectrum.largest:.3g}")
    return {
        damping: (solution.value, solution.relative_residual < RESIDUAL)
        for damping, solution in zip(DAMPINGS, solutions, strict=True)
    }


def _bound(solution: Solution, damping: float, system: System) -> float:
    """`|x - x*| <= |residual| / damping`, since no eigenvalue of H^2 + damping I is below the damping; over |x|."""
    size = float((system.remembering @ system.rhs).norm()) * solution.relative_residual
    return size / damping / float(solution.value.norm())


def _ratios(needed: dict[tuple[float, torch.dtype, str], Search]) -> list[Row]:
    table: list[Row] = []
    for damping in DAMPINGS:
        for dtype in DTYPES:
            row: Row = {"damping": f"{damping:g}", "precision": _word(dtype)}
            for error in ERRORS:
                row[f"to {error:g}"] = _ratio(needed, damping, dtype, error)
            table.append(row)
    return table


def _ratio(needed: dict[tuple[float, torch.dtype, str], Search], damping: float, dtype: torch.dtype, error: float):
    ours = needed[damping, dtype, "Lanczos"].products(error)
    theirs = needed[damping, dtype, "Normal(CG)"].products(error)
    return None if ours is None or theirs is None else ours / theirs


def _targets(report: Report, needed: dict[tuple[float, torch.dtype, str], Search]) -> None:
    for damping in DAMPINGS:
        found = [_ratio(needed, damping, dtype, error) for dtype in DTYPES for error in ERRORS]
        both = [ratio for ratio in found if ratio is not None]
        if both:
            report.target(f"largest ratio of products at damping {damping:g}, where both arrive", max(both), TARGET)


def _seconds(report: Report, system: System, needed: dict[tuple[float, torch.dtype, str], Search]) -> None:
    """Wall seconds to one error, products made anew; the time beside the products is the solver's own."""
    works: dict[str, Work] = {"one product": lambda: system.operator @ system.rhs}
    spent: dict[str, int] = {"one product": 1}
    for name, make in SOLVERS.items():
        search = needed[TIMED_DAMPING, torch.float32, name]
        steps = search.steps(TIMED_ERROR)
        if steps is not None:
            solver = make(TIMED_DAMPING, steps)
            works[name] = lambda solver=solver: solve(system.operator, system.rhs, solver)
            solution: Any = solve(system.operator, system.rhs, solver)
            spent[name] = solution.products + solution.checks
    times = in_turn(works, report.asked.repetitions(7))
    table: list[Row] = [
        {
            "work": name,
            "products and checks": spent[name],
            "s": time.median,
            "least s": time.least,
            "in products": time.over(times["one product"]),
        }
        for name, time in times.items()
    ]
    report.table(f"Seconds to {TIMED_ERROR:g} at damping {TIMED_DAMPING:g} in float32", table, "seconds")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
