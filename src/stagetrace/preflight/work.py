"""Counted work: over how many examples the preflight may multiply, so that it answers within a minute.

What a look costs is bounded by floating-point operations and not by seconds, so that the same chain is looked at in the
same way on every machine.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import torch

from stagetrace.curvature.operator import LinearOperator
from stagetrace.curvature.plan import COST, PROBE_EXAMPLES, counted_operations
from stagetrace.progress import Progress
from stagetrace.solvers.base import Spectrum
from stagetrace.solvers.damping import settled
from stagetrace.solvers.spectrum import extreme_ritz_values
from stagetrace.stages.problem import Problem

How = Mapping[str, int | float | str | None]

SPECTRUM_STEPS = 20
"""Products of the look at the spectrum, at most."""

OPERATIONS = 1e11
"""Floating-point operations (of matrix products and convolutions) that the look at one stage's spectrum may take."""

FEWEST = 64
"""Examples that the spectrum is looked at over, however much work they are."""


@final
@dataclass(frozen=True)
class Look:
    """What a short Lanczos run said of a stage's curvature, and what a product of the solve will take.

    examples: that the run averaged over. of: that the stage's curvature averages over; 0 where it is no average.
    products: of the run. seconds: of one product over `of` examples, from those of the run.
    """

    spectrum: Spectrum
    products: int
    examples: int
    of: int
    seconds: float
    how: How

    @property
    def whole(self) -> bool:
        """Whether the run saw the curvature that the solve inverts."""
        return self.examples >= self.of

    @staticmethod
    def at(problem: Problem, operator: LinearOperator, progress: Progress) -> "Look":
        """Run up to `SPECTRUM_STEPS` products over as many examples as the work allows.

        Raises:
            StagetraceError: a product cannot be computed.
        """
        how = operator.how()
        of = int(how.get("examples") or 0)
        few = min(of, affordable(problem, how))
        looked = operator if few >= of else operator.subsample(few, torch.Generator().manual_seed(0))
        with progress.task(f"spectrum of stage '{problem.name}'", None, "products") as advance:
            seen: list[float] = [time.perf_counter()]

            def report(step: int, residual: float, /) -> None:
                del step, residual
                seen.append(time.perf_counter())
                advance(1)

            enough = partial(settled, dtype=looked.dtype)
            spectrum, products = extreme_ritz_values(looked, SPECTRUM_STEPS, report, enough)
        if len(seen) == 2:  # set-up is paid in the first product
            looked.apply(problem.own.zeros(1))
            seen.append(time.perf_counter())
        each = (seen[-1] - seen[1]) / (len(seen) - 2)
        if few < of:
            each *= of / few * float(how["gradients per product"] or 1) / COST["forward anew"]
        return Look(spectrum, products, few, of, each, how)


def affordable(problem: Problem, how: How) -> int:
    """How many examples `SPECTRUM_STEPS` products may average over within `OPERATIONS`."""
    if not how.get("examples"):
        return 0
    risk = problem.risk
    few = range(min(PROBE_EXAMPLES, len(risk.examples)))
    forward = counted_operations(risk, next(iter(risk.read([few])))) / len(few)
    product = 3 * COST["forward anew"] * forward  # a gradient is three forward passes
    return max(FEWEST, int(OPERATIONS / (SPECTRUM_STEPS * max(1.0, product))))
