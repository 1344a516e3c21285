"""How much of a ranking is the data's, and how much the damping's: the scores again at ten times more and less."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import CurvatureWarning, refuse
from stagetrace.progress import Progress
from stagetrace.results import Scores, Trace
from stagetrace.results.files import write_text
from stagetrace.results.jsonable import from_json, json_text
from stagetrace.solvers import Lanczos
from stagetrace.solvers.base import Damping, Inverse, Solver
from stagetrace.solvers.system import System
from stagetrace.stages.chain import Chain
from stagetrace.tracing.describe import by_stage
from stagetrace.tracing.query import Query
from stagetrace.tracing.trace import trace
from stagetrace.validation.agreement import Agreement

NAME = "sweep.json"
FACTORS = (0.1, 10.0)
TOP = 100


@final
@dataclass(frozen=True)
class Stability:
    """What became of a stage's ranking when the damping of every stage was multiplied by `factor`.

    spearman: rank correlation of the scores with those of the run; 1: the order is the same.
    kept: the share of the run's `top` most harmful examples that are still among them, from 0 to 1.
    """

    stage: str
    factor: float
    spearman: float
    kept: float
    top: int

    @staticmethod
    def of(before: Scores, after: Scores, factor: float) -> "Stability":
        """Compare two sets of scores of the same stage; a stage of one example has no order."""
        top = min(TOP, max(1, before.n_examples // 10))
        same = set(before.top(top).indices) & set(after.top(top).indices)
        alone = before.n_examples < 2
        found = 1.0 if alone else Agreement.of(before.per_example, after.per_example, resamples=1).spearman_r
        return Stability(before.stage, factor, found, len(same) / top, top)


@final
@dataclass(frozen=True)
class Rescaled:
    """A solver with its damping multiplied by `factor`; one that chooses its damping chooses first."""

    inner: Solver
    factor: float

    @property
    def rule(self) -> Damping:
        return self.inner.rule.scaled(self.factor)

    def prepare(self, system: System, preconditioner: LinearOperator | None = None) -> Inverse:
        return self.inner.prepare(system, preconditioner)


def sweep(
    result: Trace,
    chain: Chain,
    query: Query,
    *,
    curvature: Curvature | Mapping[str, Curvature] | None = None,
    solver: Solver | Mapping[str, Solver] | None = None,
    progress: Progress | bool = False,
) -> tuple[Stability, ...]:
    """Trace twice more, with the damping of every stage a tenth and ten times as large, and compare the rankings.

    curvature, solver: those of the run.

    Raises:
        DescriptionError: no stage is damped, so that there is nothing to move.
    """
    solvers = by_stage(chain, solver, Lanczos(), "solver")
    check_damped(solvers)
    found = list[Stability]()
    for factor in FACTORS:
        rescaled = {name: Rescaled(each, factor) for name, each in solvers.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CurvatureWarning)  # the run has said it of the same stages
            again = trace(chain, query, curvature=curvature, solver=rescaled, of=list(result), progress=progress)
        found += [Stability.of(result[stage], again[stage], factor) for stage in result]
    return tuple(found)


def check_damped(solvers: Mapping[str, Solver]) -> None:
    """Refuse to move the damping where no stage has any.

    Raises:
        DescriptionError: no stage is damped.
    """
    if all(each.rule.scaled(2.0) == each.rule for each in solvers.values()):
        refuse("the damping sweep: no stage is damped, so there is nothing to multiply; leave --sweep out")


def write_sweep(folder: Path, found: Sequence[Stability]) -> None:
    """Keep a sweep beside its run.

    Raises:
        ResultsError: the file system refused.
    """
    write_text(folder / NAME, json_text(found))


def read_sweep(record: Any) -> tuple[Stability, ...]:
    """What `write_sweep` wrote, from its JSON."""
    return tuple(from_json(Stability, each) for each in record)
