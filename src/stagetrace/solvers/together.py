"""Many right-hand sides of one system: each by itself, by one shared Krylov basis, or in the space of the examples.

What is cheapest is counted before anything is done, in floating-point operations (`NETWORK` of a matrix product's for
each of a network's, which takes smaller steps), for k right-hand sides of `(G + damping I) x = b`:

    separate        k (s + 1) products, with s = `PER_DIGIT` for each digit of the tolerance, and two
    shared basis    as many for the basis as 100 or k s / 2, and two for each column
    sample space    the rows, the Gram matrix of the large ones and its Cholesky factor, and for each column 4 dim for
                    each row, again for each correction; counted once the rows are there, and these are made where
                    they take less than `WORTH` of the other ways

The first takes any system. The others need H + damping I to be positive definite, and a basis `MANY` columns to pay.
`(H^2 + damping I) x = H b` is always solved column by column: the recurrence takes right-hand sides of the form H b,
which what a start leaves over is only at the price of two more products a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import Literal, final

import torch
from torch import Tensor

from stagetrace.curvature.operator import Factor
from stagetrace.errors import SolveError, refuse
from stagetrace.solvers.base import ColumnSolutions, Status
from stagetrace.solvers.filters import Shift
from stagetrace.solvers.iteration import Report
from stagetrace.solvers.mixtures import PROBES
from stagetrace.solvers.sample_space import NETWORK, SampleSpace
from stagetrace.solvers.shared_basis import NoSharedBasisError, SharedBasis
from stagetrace.solvers.system import System
from stagetrace.solvers.vectors import nonzero

__all__ = ["MANY", "MODES", "RANKING", "VALUES", "Many", "Mode", "NotSharedError", "tolerance", "tolerance_note"]

Mode = Literal["auto", "separate", "shared basis", "sample space"]
"""How several right-hand sides are solved."""

MODES: tuple[Mode, ...] = ("auto", "separate", "shared basis", "sample space")

MANY = 10
"""Right-hand sides from which it is worth looking for what they share."""

VALUES, RANKING = 1e-2, 0.1
"""The tolerance of many right-hand sides by default. A residual of 1e-2 keeps scores to about as much; one of 0.1 keeps
0.96 to 0.98 of the hundred largest, which is enough where only the order counts."""

SINGLE = 1e-4
"""That of fewer than `MANY`."""

WORTH = 0.25
"""Of the cheapest other way's operations: what making the rows may take to see what they are worth."""

HOPELESS = 16
"""Times the memory that all rows would take, beyond which it is not tried whether few of them do."""

PER_DIGIT = 6
"""Products with which conjugate gradients gain a digit, by experience: it decides on costs, never on an answer."""


class NotSharedError(Exception):
    """The columns are to be solved one by one; notes: why. products: what was spent on trying."""

    def __init__(self, notes: Sequence[str] = (), products: int = 0) -> None:
        super().__init__("; ".join(notes))
        self.notes, self.products = tuple(notes), products


def tolerance(rtol: float | Literal["auto"], columns: int) -> float:
    """The relative residual that is asked for.

    Example:
        >>> tolerance("auto", 1), tolerance("auto", 100), tolerance(1e-6, 100)
        (0.0001, 0.01, 1e-06)
    """
    if rtol != "auto":
        return rtol
    return VALUES if columns >= MANY else SINGLE


def tolerance_note(rtol: float | Literal["auto"], columns: int) -> str | None:
    """What is said of a tolerance that many right-hand sides have by default; None where there is nothing to say."""
    if rtol != "auto" or columns < MANY:
        return None
    return (
        f"asked for a relative residual of {VALUES:g}, the default for {MANY} or more right-hand sides: scores to about"
        f" that much; for a ranking alone {RANKING:g} is enough, and rtol={SINGLE:g} is as exact as for one"
    )


@final
@dataclass(frozen=True)
class Many:
    """How the right-hand sides of a system are solved together, as `Lanczos` has it.

    rtol, max_steps, memory: of the solver. mode: what was asked for.
    """

    system: System
    rtol: float
    max_steps: int
    memory: int
    mode: Mode = "auto"

    def solve(self, columns: Tensor, report: Report) -> ColumnSolutions:
        """The solutions for `columns` `[dim, k]`; zero columns cost nothing.

        Raises:
            NotSharedError: the columns are to be solved one by one.
            DescriptionError: another mode than "auto" was asked for, and cannot be.
        """
        live = torch.tensor(nonzero(columns), device=columns.device)
        number = int(live.sum())
        if self.mode == "separate" or number == 0 or (self.mode == "auto" and columns.shape[1] < 2):
            raise NotSharedError
        if not isinstance(self.system.filter, Shift):
            self._refused(f"{self.system} is solved column by column")
            raise NotSharedError([] if number < MANY else [f"{number:,} right-hand sides were solved one by one"])
        found = self._solved(columns if number == columns.shape[1] else columns[:, live], report)
        return found if number == columns.shape[1] else _spread(found, live, columns)

    def _solved(self, columns: Tensor, report: Report) -> ColumnSolutions:
        k, notes, spent = columns.shape[1], list[str](), 0
        factor = "it was not asked for" if self.mode == "shared basis" else self.system.operator.factor()
        counted = self._by_products(k, factor)
        if isinstance(factor, str):
            if self.mode == "sample space":
                self._refused(factor)
        elif self.mode == "sample space" or self._worth_rows(factor, counted):
            try:
                found = self._by_rows(factor, columns, counted, report)
                if found is not None:
                    return self._with_count(found, counted)
            except SolveError as cause:
                self._refused(str(cause))
                notes.append(f"not in the space of the examples: {cause}")
        if k >= MANY or self.mode == "shared basis":
            damping, forced = self.system.linear.damping, self.mode == "shared basis"
            basis = SharedBasis(self.system.operator, damping, self.rtol, self.max_steps, self.memory, forced)
            try:
                found = basis.solve(columns, report)
                return self._with_count(replace(found, notes=(*notes, *found.notes)), counted)
            except NoSharedBasisError as cause:
                self._refused(str(cause))
                notes.append(f"no shared basis: {cause}")
                spent = cause.products
        raise NotSharedError(notes, spent)

    def _by_products(self, k: int, factor: Factor | str) -> dict[Mode, float]:
        """Operations of the ways that take products; the products where nothing is known of what they cost."""
        steps = 2 + PER_DIGIT * -log10(self.rtol)
        product = 1.0 if isinstance(factor, str) else NETWORK * factor.product
        counted: dict[Mode, float] = {"separate": k * (steps + 1) * product}
        if k >= MANY:
            counted["shared basis"] = (min(100.0, k * steps / 2) + 2 * k) * product
        return counted

    def _worth_rows(self, factor: Factor, counted: dict[Mode, float]) -> bool:
        """Whether to make the rows, whose norms say what the rest costs: where that is little beside the other ways."""
        operator = self.system.operator
        hopeless = factor.most_rows * operator.size * operator.dtype.itemsize > HOPELESS * self.memory
        return not hopeless and NETWORK * factor.build <= WORTH * min(counted.values())

    def _by_rows(
        self, factor: Factor, columns: Tensor, counted: dict[Mode, float], report: Report
    ) -> ColumnSolutions | None:
        """In the space of the examples; None where the rows' norms say that another way is cheaper."""
        space = SampleSpace(self.system.operator, factor, self.system.linear.damping, self.rtol, self.memory)
        rows = space.rows()
        others = min(counted.values())
        checks = NETWORK * factor.product * min(columns.shape[1], PROBES)
        counted["sample space"] = NETWORK * factor.build + space.operations(rows, columns.shape[1]) + checks
        if self.mode == "auto" and counted["sample space"] - NETWORK * factor.build > others:
            return None
        return space.solve(rows, columns, report)

    def _with_count(self, found: ColumnSolutions, counted: dict[Mode, float]) -> ColumnSolutions:
        if self.mode != "auto":
            return found
        least = min(counted.values())
        words = ", ".join(f"{mode} {count / least:.3g}" for mode, count in counted.items())
        return replace(found, notes=(*found.notes, f"chosen by counted work, relatively: {words}"))

    def _refused(self, why: str) -> None:
        """Refuse a mode that was asked for and cannot be had."""
        if self.mode not in ("auto", "separate"):
            refuse(f"Lanczos(many={self.mode!r}): {why}; type many='auto'")


def _spread(found: ColumnSolutions, live: Tensor, columns: Tensor) -> ColumnSolutions:
    """The solutions of the nonzero columns among those of all: zero, with a residual of 0."""
    value = torch.zeros_like(columns)
    value[:, live] = found.value
    residuals, statuses = iter(found.residuals), iter(found.statuses)
    flags = live.tolist()
    return replace(
        found,
        value=value,
        residuals=tuple(next(residuals) if flag else 0.0 for flag in flags),
        statuses=tuple(next(statuses) if flag else Status.CONVERGED for flag in flags),
    )
