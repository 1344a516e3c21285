"""What a trace will take, from its own steps over a few examples: each is counted, a part of it measured, and scaled.

Seconds and peaks are those of this process on this machine. First calls are slower than later ones (PyTorch loads what
it needs), so the first batch of a pass counts once and the second stands for all others. The steps are those of
`tracing.trace`, in its order: a phase's peak has everything in it that the process holds by then.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch

from stagetrace.checks import Finding, verify_query, verify_stage
from stagetrace.curvature.auto import Auto, coupling_indices
from stagetrace.curvature.choices import Curvature
from stagetrace.preflight.forecast import Forecast, Phase
from stagetrace.preflight.meter import Seconds, Taken, metered, over_batches, resident_bytes, typical_batches
from stagetrace.preflight.rehearsal import rehearse
from stagetrace.preflight.solve_estimate import SolveEstimate
from stagetrace.progress import Silent
from stagetrace.results.jsonable import json_text, to_json
from stagetrace.results.parts import Part, part_size, write_part
from stagetrace.results.solutions import solution_record, write_solution
from stagetrace.solvers.base import Solution, Solver, Status
from stagetrace.solvers.early_stopping import EarlyStopping
from stagetrace.solvers.filters import Shift
from stagetrace.solvers.lanczos import Lanczos
from stagetrace.solvers.system import Equation
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.gradient import FEW, Gradient, mean_gradient
from stagetrace.stages.identity import Identity
from stagetrace.stages.modes import in_ordinary_modes
from stagetrace.stages.risk import Risk
from stagetrace.tracing.describe import by_stage, describe
from stagetrace.tracing.pull_back import pull_back
from stagetrace.tracing.query import Query
from stagetrace.tracing.score import Scorer
from stagetrace.tracing.usual import usual_solvers

__all__ = ["Predictor", "predict"]

SINGLE = 8
"""Bytes of a score where there is one an example."""

RECORD_BYTES = 6000
"""Of a run's record on disk: its statistics, beside the description and the solutions, which are counted."""


@final
@dataclass
class Predictor:
    """Collects the phases of a trace with `out`, stage by stage.

    checks: of each stage and of the query, which are the run's own.
    """

    chain: Chain
    query: Query
    curvature: Mapping[str, Curvature]
    solver: Mapping[str, Solver]
    kept: bool = True
    checks: dict[str, list[Finding]] = field(default_factory=dict[str, list[Finding]])
    _phases: list[Phase] = field(default_factory=list[Phase])
    _left_out: list[str] = field(default_factory=list[str])
    _results: int = 0

    def begun(self) -> None:
        """What the process has spent already: imports, models and data."""
        spent = Seconds.now()
        self._phases.append(
            Phase("run", "start", Seconds(spent.cpu, spent.cpu), resident_bytes(), 0, "imports, models and data")
        )

    def checked(self, bound: BoundStage) -> list[Finding]:
        """Check a stage as the run does."""
        before = self.chain.stages[: self.chain.names.index(bound.name)]
        return self._checked(bound.name, lambda: verify_stage(bound, before))

    def checked_query(self) -> list[Finding]:
        """Check the query as the run does."""
        last = self.chain.last
        before, risks = self.chain.stages[:-1], self.query.risks(last)
        return self._checked("query", lambda: [each for risk in risks for each in verify_query(risk, last, before)])

    def _checked(self, where: str, verify: Callable[[], list[Finding]]) -> list[Finding]:
        with metered() as taken:
            self.checks[where] = verify()
        self._add(where, "checks", taken.seconds, taken, how="they were run")
        return self.checks[where]

    def forecast(self) -> Forecast:
        """All phases, after the checks."""
        if self.kept:
            self._described()
        gradient = self._query_gradient()
        for bound in reversed(self.chain):
            if bound.recording is not None:
                self._left_out.append(
                    f"stage '{bound.name}' and those before it: the first goes back through its recorded training, see "
                    "its finding 'recording'"
                )
                break
            gradient = self._stage(bound, gradient)
        if self.kept:
            self._left_out.append("the report, which `stagetrace score` writes afterwards")
        return Forecast(tuple(self._phases), tuple(self._left_out))

    def _add(
        self,
        where: str,
        what: str,
        seconds: Seconds,
        taken: Taken,
        more: int = 0,
        disk: int = 0,
        how: str = "",
        products: int = 0,
    ) -> None:
        """more: bytes beyond the peak that was seen."""
        memory = taken.peak + max(0, more) + self._results
        self._phases.append(Phase(where, what, seconds, memory, disk, how, products))

    def _described(self) -> None:
        with metered() as taken:
            scored = set(self.chain.names)
            described = describe(
                self.chain,
                self.query,
                self.curvature,
                self.solver,
                scored,
                parts=False,
                progress=Silent(),
                read=False,
            )
        seconds, peak, examples = taken.seconds, taken.peak, 0
        for risk in (*(bound.risk for bound in self.chain), *self.query.risks(self.chain.last)):
            with metered() as taken:
                seconds += over_batches(risk.examples.batch_indices(), lambda each, risk=risk: _digested(risk, each))
            peak, examples = max(peak, taken.peak), examples + len(risk.examples)
        how = f"two batches of each data set were read, for {examples:,} examples"
        disk = RECORD_BYTES + len(json_text(to_json(described), "description"))
        self._add("run", "fingerprints", seconds, Taken(seconds, peak), 0, disk, how)

    def _query_gradient(self) -> Gradient:
        last, query = self.chain.last, self.query
        risks = [risk.beside(last.statistics_values) for risk in query.risks(last)]
        rows, total = query.rows, sum(len(risk.examples) for risk in risks)
        if rows is not None or total <= max(FEW, 2 * query.batch_size):
            with metered() as taken:
                gradient = query.gradient(last)
            self._add("query", "gradient", taken.seconds, taken, how=f"of all {total:,} examples, as the run takes it")
            return gradient
        found = list[Gradient]()
        with metered() as taken:
            seconds = Seconds()
            for risk in risks:
                plan = typical_batches(risk.examples, risk.examples.batch_size)
                seconds += over_batches(plan, lambda each, risk=risk: found.append(mean_gradient(risk, each)))
        self._add("query", "gradient", seconds, taken, how=f"two batches, for {total:,} examples")
        mean = found[0]
        return Gradient(mean.trained, *mean.inherited.split((last.inherited.size, last.statistics.size)))

    def _stage(self, bound: BoundStage, gradient: Gradient) -> Gradient:
        name, columns = bound.name, gradient.trained.shape[1]
        with metered() as taken:
            planned = self.curvature[name].operator(bound)
        self._add(name, "probe of the curvature", taken.seconds, taken, how="it was made")
        solver = self.solver[name]
        if isinstance(solver, EarlyStopping) and solver.earlier:
            self._left_out.append(f"the earlier segments of stage '{name}'")
        found = rehearse(bound, self.curvature[name], planned, solver, gradient.trained)
        del planned
        more = found.data_later(bound) + found.rows_later(bound)
        self._add(name, "solving", found.seconds, Taken(found.seconds, found.peak), more, 0, found.how, found.products)
        adjoint = found.adjoint
        self._scored(bound, found)
        if bound.previous is None:
            return gradient
        indices = coupling_indices(self.curvature[name], bound, columns)
        size, passed = bound.stage.examples.batch_size, list[Gradient]()
        plan = [indices[start : start + size] for start in range(0, len(indices), size)]
        previous = self.chain[bound.previous.name]
        with metered() as taken:
            seconds = over_batches(
                plan, lambda each: passed.append(pull_back(bound, previous, adjoint, gradient, each))
            )
        self._add(
            name, "coupling to the stage before", seconds, taken, how=f"two batches, for {len(indices):,} examples"
        )
        return passed[0]

    def _scored(self, bound: BoundStage, found: SolveEstimate) -> None:
        adjoint = found.adjoint
        examples, columns, rows = len(bound.risk.examples), adjoint.shape[1], self.query.rows
        with metered() as taken:
            started = Seconds.now()
            scorer = Scorer.of(bound.risk, adjoint, parts=False, rows=rows)
            chosen = Seconds.now() - started
            plan = typical_batches(bound.risk.examples, scorer.at_once)

            def contracted(each: Sequence[int]) -> None:
                for batch in bound.risk.read([each]):
                    scorer.contract(batch)

            seconds = chosen + over_batches(plan, contracted)
        width = SINGLE if rows is None else max(4, adjoint.element_size())
        part = min(examples, part_size(rows)) * columns * (adjoint.element_size() + 2 * width)
        how = f"{examples:,} examples by {scorer.way} ({scorer.why}), from two batches"
        self._results += examples * columns * width
        self._add(bound.name, "scoring", seconds, taken, part, how=how)
        if self.kept:
            self._written(bound, found, rows)

    def _written(self, bound: BoundStage, found: SolveEstimate, rows: int | None) -> None:
        """Of a part of random scores, which hardly compress, as scores do not; and of the solution."""
        examples, adjoint = len(bound.risk.examples), found.adjoint
        size = min(examples, part_size(rows), max(1, 2**20 // (rows or 1)))
        values = torch.randn(*(() if rows is None else (rows,)), size, dtype=torch.float64 if rows is None else None)
        unsolved = Solution(adjoint, Equation(Shift(0.0)), (0.0,), 0, 0, 0, (Status.CONVERGED,), 1e-4)
        solution = found.solution or unsolved
        with tempfile.TemporaryDirectory() as folder, metered() as taken:
            started = Seconds.now()
            write_part(Path(folder) / "part", "run", bound.name, 0, Part(0, values, size))
            seconds = (Seconds.now() - started) * (examples / size)
            started = Seconds.now()
            write_solution(Path(folder) / "solution", "run", bound.name, solution)
            seconds += Seconds.now() - started
            disk = int((Path(folder) / "part").stat().st_size * examples / size)
            disk += (Path(folder) / "solution").stat().st_size
        disk += len(json_text(to_json(solution_record(solution)), "solution"))
        how = f"{examples:,} x {rows or 1:,} scores and the solution; {size:,} x {rows or 1:,} were written for it"
        self._add(bound.name, "writing", seconds, taken, 0, disk, how)


def _digested(risk: Risk, each: Sequence[int]) -> None:
    walk = Identity().walk()
    for batch in risk.examples.read([each]):
        walk.digest(batch.content, "batch")


@in_ordinary_modes
def predict(
    chain: Chain,
    query: Query,
    *,
    curvature: Curvature | str | Mapping[str, Curvature | str] | None = None,
    solver: Solver | str | Mapping[str, Solver | str] | None = None,
    kept: bool = True,
) -> Forecast:
    """What `trace` with the same arguments will take in a process like this one: seconds, memory and disk by phase.

    The trace's own steps are taken over a few examples, and scaled: see `docs/plans.md`. Takes the checks and, for each
    stage, 2e11 floating-point operations, which is some ten seconds on one core; writes only into a temporary folder.

    kept: whether the run is kept in a folder (`out`).

    Raises:
        StagetraceError: the trace would be refused; the message is the one the trace would give.
    """
    chain = chain.refreshed()
    curvatures = by_stage(chain, curvature, Auto(), "curvature")
    solvers = by_stage(chain, solver, Lanczos(), "solver", usual_solvers(chain, curvatures))
    predictor = Predictor(chain, query, curvatures, solvers, kept)
    predictor.begun()
    for bound in chain:
        predictor.checked(bound)
    predictor.checked_query()
    return predictor.forecast()
