"""The system to be solved, as a value: a curvature, a function of it, and why that one.

A damping rule (`damping.py`) makes the `System` of an operator; every solver takes one. A solution outlives the
operator and what that holds in memory, so it has the `Equation` alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, final

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import refuse
from stagetrace.solvers.filters import FILTERS, Filter
from stagetrace.solvers.flow import Flow

Matrix = Literal["H", "G"]
"""The stage's own curvature, or the positive semi-definite one that was inverted in its place."""


@final
@dataclass(frozen=True)
class Spectrum:
    """Estimates of the operator's eigenvalues (the curvature alone, undamped), a by-product of a solve.

    `ritz` are ascending estimates; `smallest` and `largest` are rigorous in one direction only: the true
    smallest eigenvalue is at most `smallest`, the true largest at least `largest`.
    """

    ritz: tuple[float, ...]

    @property
    def smallest(self) -> float:
        return self.ritz[0]

    @property
    def largest(self) -> float:
        return self.ritz[-1]


@final
@dataclass(frozen=True)
class Equation:
    """Which function of which curvature was applied; its `str` is the linear system as text.

    matrix: "H", the curvature that was asked for, or "G", a positive semi-definite one in its place.

    Example:
        >>> from stagetrace.solvers.filters import Shift
        >>> str(Equation(Shift(0.3), "G"))
        '(G + 0.3 I) x = b'
    """

    filter: Filter | Flow
    matrix: Matrix = "H"

    def __str__(self) -> str:
        return self.filter.text(self.matrix)

    def record(self) -> dict[str, str | float]:
        """The value as JSON holds it."""
        if isinstance(self.filter, Flow):
            return {"matrix": self.matrix, **self.filter.record()}
        return {"matrix": self.matrix, "filter": type(self.filter).__name__, "damping": float(self.filter.damping)}

    @staticmethod
    def of(record: Mapping[str, object]) -> "Equation | RecordedSteps | FlowSegments":
        """What `record` wrote, here or of `RecordedSteps` and `FlowSegments`.

        Raises:
            LookupError, ValueError: it is something else.
        """
        steps = record.get("recorded steps")
        if isinstance(steps, int):
            return RecordedSteps(steps)
        matrix = record["matrix"]
        if matrix not in ("H", "G"):
            raise ValueError(f"it solves {record!r}, which is no equation")
        if "segments" in record:
            return FlowSegments.of(record, matrix)
        if "time" in record:
            return Equation(Flow.of(record), matrix)
        damping = record["damping"]
        if not isinstance(damping, int | float):
            raise ValueError(f"it solves {record!r}, which is no equation")
        return Equation(FILTERS[str(record["filter"])](float(damping)), matrix)


@final
@dataclass(frozen=True)
class FlowSegments:
    """In an equation's place: one `phi_t` after the other, each with the curvature at the end of its stretch.

    Example:
        >>> str(FlowSegments((Flow(0.5), Flow(2.0)), "G"))
        'x = phi_t(G) b in 2 segments, t = 0.5, 2'
    """

    flows: tuple[Flow, ...]
    matrix: Matrix = "H"

    def __str__(self) -> str:
        words = self.flows[-1].text(self.matrix).rpartition(", t = ")[0]
        return f"{words} in {len(self.flows)} segments, t = {', '.join(f'{flow.time:g}' for flow in self.flows)}"

    def record(self) -> dict[str, str | list[dict[str, str | float]]]:
        """The value as JSON holds it; `Equation.of` reads it."""
        return {"matrix": self.matrix, "segments": [flow.record() for flow in self.flows]}

    @staticmethod
    def of(record: Mapping[str, object], matrix: Matrix) -> "FlowSegments":
        """What `record` wrote.

        Raises:
            LookupError, ValueError, DescriptionError: it is something else.
        """
        flows = record["segments"]
        if not isinstance(flows, list) or not flows:
            raise ValueError(f"it applies {record!r}, which is no function of curvatures")
        return FlowSegments(tuple(Flow.of(cast("Mapping[str, object]", each)) for each in flows), matrix)


@final
@dataclass(frozen=True)
class RecordedSteps:
    """In an equation's place: nothing was solved, the derivative went through so many recorded steps.

    Example:
        >>> str(RecordedSteps(350))
        'the derivative through 350 recorded steps'
    """

    steps: int
    matrix: ClassVar[str] = "recorded steps"

    def __str__(self) -> str:
        return f"the derivative through {self.steps:,} recorded steps"

    def record(self) -> dict[str, str | float]:
        """The value as JSON holds it; `Equation.of` reads it."""
        return {"recorded steps": self.steps}


@final
@dataclass(frozen=True, eq=False)
class System:
    """`filter(operator) x = b`: what a solver takes, made by a damping rule.

    operator: the curvature to invert, undamped. filter: the function of it that is applied, a damped inverse say.
    matrix: what `operator` is, see `Equation`.
    spectrum: the extreme eigenvalues of the stage's own curvature, where the rule estimated them.
    products: with the curvature, spent by the rule. notes: what the rule decided, and why.
    """

    operator: LinearOperator
    filter: Filter | Flow
    matrix: Matrix = "H"
    spectrum: Spectrum | None = None
    products: int = 0
    notes: tuple[str, ...] = ()

    @property
    def equation(self) -> Equation:
        return Equation(self.filter, self.matrix)

    @property
    def linear(self) -> Filter:
        """The filter, for solvers of linear systems.

        Raises:
            DescriptionError: another function is asked for.
        """
        if isinstance(self.filter, Flow):
            refuse(f"{self} is no linear system; EarlyStopping(time={self.filter.time:g}) applies it")
        return self.filter

    def __str__(self) -> str:
        return str(self.equation)
