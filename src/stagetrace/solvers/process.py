"""An algorithm as a process: it asks for products, and is sent them; see `lockstep.py`."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, TypeVar, final

from torch import Tensor


class Report(Protocol):
    """Called after each iteration with the steps done and the worst relative residual estimate so far.

    The residual is NaN while there is no answer yet: a rule that chooses the damping looks at the spectrum first.
    """

    def __call__(self, step: int, residual: float, /) -> None: ...


def silent(step: int, residual: float, /) -> None:
    """The report that says nothing."""


@final
@dataclass(frozen=True)
class Ask:
    """What a running process says: multiply these `vectors` please; my relative residual is about `residual`.

    vectors: one `[dim]`, or a block of several `[dim, m]`; the product comes in the same shape.
    `check` marks products spent on measuring the answer, which are counted apart from those spent on finding it.
    """

    vectors: Tensor
    residual: float
    check: bool = False


class Outcome(Protocol):
    """What a process returns: at least the relative residual that it ended with."""

    @property
    def residual(self) -> float: ...


T = TypeVar("T", bound=Outcome)
Process = Generator[Ask, Tensor, T]
