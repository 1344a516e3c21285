"""How many examples the preflight may multiply over, so that it ends within a minute.

Its work is bounded by floating-point operations and not by seconds, so that a chain is examined in the same way on
every machine.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import final

import torch

from stagetrace.curvature.cost import Cost
from stagetrace.curvature.operations import counted_operations
from stagetrace.curvature.operator import LinearOperator
from stagetrace.progress import Progress
from stagetrace.solvers.damping import settled
from stagetrace.solvers.spectrum import extreme_ritz_values
from stagetrace.solvers.system import Spectrum
from stagetrace.stages.bound import BoundStage

SPECTRUM_STEPS = 20
"""Products that estimate the spectrum, at most."""

OPERATIONS = 1e11
"""Floating-point operations (of matrix products and convolutions) that estimating one stage's spectrum may take."""

RECOMPUTED = 3.5
"""Gradients over the same examples that a product over some of them takes, which holds nothing."""

PROBED = 8
"""Examples of which a forward pass is counted."""

FEWEST = 64
"""Examples that the spectrum is estimated over, whatever they cost."""


@final
@dataclass(frozen=True)
class Look:
    """A stage's curvature as a short Lanczos run found it, and what a product of the solve will take.

    examples: that the run averaged over. of: that the stage's curvature averages over; 0 where it is no average.
    products: of the run. seconds: of one product over `of` examples, from those of the run.
    """

    spectrum: Spectrum
    products: int
    examples: int
    of: int
    seconds: float
    cost: Cost | None

    @property
    def whole(self) -> bool:
        """Whether the run saw the curvature that the solve inverts."""
        return self.examples >= self.of

    @staticmethod
    def at(bound: BoundStage, operator: LinearOperator, progress: Progress) -> "Look":
        """Run up to `SPECTRUM_STEPS` products over as many examples as the work allows.

        Raises:
            StagetraceError: a product cannot be computed.
        """
        cost = operator.cost()
        of = 0 if cost is None else cost.examples
        few = 0 if cost is None else min(of, affordable(bound))
        looked = operator if few >= of else operator.subsample(few, torch.Generator().manual_seed(0))
        with progress.task(f"spectrum of stage '{bound.name}'", None, "products") as advance:
            seen: list[float] = [time.perf_counter()]

            def report(step: int, residual: float, /) -> None:
                del step, residual
                seen.append(time.perf_counter())
                advance(1)

            enough = partial(settled, dtype=looked.dtype)
            spectrum, products = extreme_ritz_values(looked, SPECTRUM_STEPS, report, enough)
        if len(seen) == 2:  # set-up is paid in the first product
            looked.apply(bound.trained.zeros(1))
            seen.append(time.perf_counter())
        each = (seen[-1] - seen[1]) / (len(seen) - 2)
        part = looked.cost()
        if cost is not None and part is not None and few < of:
            each *= of / few * cost.gradients_per_product / part.gradients_per_product
        return Look(spectrum, products, few, of, each, cost)


def affordable(bound: BoundStage) -> int:
    """How many examples `SPECTRUM_STEPS` products may average over within `OPERATIONS`."""
    risk = bound.risk
    few = range(min(PROBED, len(risk.examples)))
    forward = counted_operations(risk, next(iter(risk.read([few])))) / len(few)
    product = 3 * RECOMPUTED * forward  # a gradient is three forward passes
    return max(FEWEST, int(OPERATIONS / (SPECTRUM_STEPS * max(1.0, product))))
