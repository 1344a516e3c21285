"""An operator that says how much of a solve goes over examples, and so grows with their number."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.cost import Cost
from stagetrace.curvature.eigen import Eigen
from stagetrace.curvature.operator import Factor, LinearOperator, Rows
from stagetrace.preflight.meter import Seconds

__all__ = ["OverExamples", "TimedOperator"]


@final
@dataclass
class OverExamples:
    """seconds: of the work that goes over examples. products: vectors multiplied. rows: of a factor, as kept.

    costs: of each operator that was multiplied by. enough: called after each product.
    """

    seconds: Seconds = field(default_factory=Seconds)
    products: int = 0
    rows: int = 0
    enough: Callable[[], None] = lambda: None

    @contextmanager
    def timed(self) -> Generator[None, None, None]:
        started = Seconds.now()
        try:
            yield
        finally:
            self.seconds += Seconds.now() - started


@final
class TimedOperator(LinearOperator):
    """The operator as it is; what goes over examples is added up in `seen`, of what it hands on, too.

    products: vectors that this one has multiplied.
    """

    def __init__(self, inner: LinearOperator, seen: OverExamples) -> None:
        self.inner, self.seen = inner, seen
        self.size, self.dtype, self.device = inner.size, inner.dtype, inner.device
        self.products = 0
        self._beside: TimedOperator | None = None

    def apply(self, vectors: Tensor) -> Tensor:
        with self.seen.timed():
            found = self.inner.apply(vectors)
        self.products += vectors.shape[1]
        self.seen.products += vectors.shape[1]
        self.seen.enough()
        return found

    @property
    def psd_approximation(self) -> "TimedOperator | None":
        other = self.inner.psd_approximation
        if self._beside is None and other is not None:
            self._beside = TimedOperator(other, self.seen)
        return self._beside

    @property
    def approximates(self) -> LinearOperator | None:
        other = self.inner.approximates
        return None if other is None else TimedOperator(other, self.seen)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.inner.notes

    @property
    def rounding(self) -> float:
        return self.inner.rounding

    def subsample(self, examples: int, generator: torch.Generator) -> LinearOperator:
        return TimedOperator(self.inner.subsample(examples, generator), self.seen)

    def cost(self) -> Cost | None:
        return self.inner.cost()

    def eigen(self) -> Eigen | None:
        with self.seen.timed():
            return self.inner.eigen()

    def release(self) -> None:
        self.inner.release()

    def factor(self) -> Factor | str:
        found = self.inner.factor()
        if isinstance(found, str):
            return found
        make = found.rows

        def rows(scale: Tensor, level: float, highest: float, memory: int) -> Rows | None:
            with self.seen.timed():
                made = make(scale, level, highest, memory)
            self.seen.rows = 0 if made is None else len(made.matrix)
            return made

        return replace(found, rows=rows)

    def parts(self, asked: "TimedOperator | None" = None) -> list["TimedOperator"]:
        """The operator, and what was multiplied by in its place, here or where it was `asked` for."""
        was_asked = (asked or self)._beside is not None
        beside = self.psd_approximation if was_asked else None
        return [self] if beside is None else [self, beside]

    def costs(self) -> list[Cost]:
        """What products cost, of all parts."""
        return [cost for part in self.parts() if (cost := part.cost()) is not None]
