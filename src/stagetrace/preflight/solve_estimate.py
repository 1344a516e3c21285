"""What a rehearsal of a solve says of the run's."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from stagetrace.preflight.meter import Seconds
from stagetrace.solvers.base import Solution
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.cached import BATCH_BYTES, bytes_of

__all__ = ["SolveEstimate"]


@final
@dataclass(frozen=True)
class SolveEstimate:
    """A stage's solve as rehearsed.

    adjoint: `[dim, k]`, of the rehearsal; the right-hand side where it did not end. solution: where it did.
    over, beside: seconds that the run will take over examples, and beside them. peak: bytes that the process will hold.
    examples, of: that the rehearsal went over, and that the run will. products: that the run will make, about.
    ended: whether that is known from a solve. rows: that a factor kept in the rehearsal.
    """

    adjoint: Tensor
    solution: Solution | None
    over: Seconds
    beside: Seconds
    peak: int
    examples: int
    of: int
    products: int
    ended: bool
    rows: int

    @property
    def seconds(self) -> Seconds:
        """As the run will take."""
        return self.over + self.beside

    @property
    def how(self) -> str:
        """In words."""
        over = f"all {self.of:,}" if self.examples >= self.of else f"{self.examples:,} of {self.of:,}"
        text = f"about {self.products:,} products"
        if not self.of:
            return f"{text}, none of them over examples"
        if not self.ended:
            return f"{text}, by the rate at which residuals fell in a rehearsal over {over} examples that was cut short"
        return f"{text}, from a rehearsal over {over} examples"

    def data_later(self, bound: BoundStage) -> int:
        """Bytes of the examples that are held for products, beyond those of the rehearsal."""
        if self.examples >= self.of:
            return 0
        each = bytes_of(next(iter(bound.risk.read([[0]]))))
        return max(0, min(BATCH_BYTES, each * self.of) - each * self.examples)

    def rows_later(self, bound: BoundStage) -> int:
        """The same of the rows of a factor, and of their Gram matrix and its Cholesky factor in float64."""
        if not self.rows or self.examples >= self.of:
            return 0
        rows = self.rows * self.of / self.examples
        each = bound.trained.size * bound.trained.dtype.itemsize
        return int((rows - self.rows) * each + 16 * (rows**2 - self.rows**2))
