"""An algorithm as a generator: it yields the vectors to multiply and is sent the products; see `batched.py`."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, TypeVar, final

from torch import Tensor


class Report(Protocol):
    """Called after each iteration with the steps done and the worst relative residual estimate so far.

    The residual is NaN while there is no answer yet: a rule that chooses the damping estimates the spectrum first.
    """

    def __call__(self, step: int, residual: float, /) -> None: ...


def silent(step: int, residual: float, /) -> None:
    """A report that does nothing."""


@final
@dataclass(frozen=True)
class Matvec:
    """A request for a product with the operator.

    vectors: one `[dim]`, or a block of several `[dim, m]`; the product comes in the same shape.
    residual: the iteration's estimate of its relative residual so far.
    check: whether the product measures the answer; such products are counted apart from those that find it.
    """

    vectors: Tensor
    residual: float
    check: bool = False


class Outcome(Protocol):
    """What an iteration returns: at least the relative residual that it ended with."""

    @property
    def residual(self) -> float: ...


T = TypeVar("T", bound=Outcome)
Iteration = Generator[Matvec, Tensor, T]
