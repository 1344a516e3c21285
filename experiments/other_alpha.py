"""The pull of a `Proximal` link as a choice of the estimator's."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from stagetrace import Chain, Query
from stagetrace.progress import Progress
from stagetrace.validation import Estimator


@final
@dataclass(frozen=True)
class WithAlpha:
    """An estimator on the chain with another pull at its last stage."""

    alpha: float | str
    inner: Estimator
    name: str

    @property
    def unit(self) -> str | None:
        return self.inner.unit

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        last = chain.stages[-1]
        again = replace(last, link=replace(last.link, alpha=self.alpha))  # pyright: ignore[reportArgumentType,reportCallIssue]
        return self.inner.removal_effects(Chain(*chain.stages[:-1], again), query, stage, progress)


def alpha_of_steps(rate: float, steps: int) -> float:
    """The pull that so many steps at a rate amount to: `2 alpha = 1 / (rate * steps)`.

    Gradient descent for T steps at the rate eta from the start moves along an eigenvector of curvature h by the share
    `1 - (1 - eta h)^T` of the way to the minimum; a pull of `2 alpha` lets it move `h / (h + 2 alpha)`. Both are
    `eta T h` for small h with `2 alpha = 1 / (eta T)`. Adam scales its steps, so for Adam this is a rough guide.

    Example:
        >>> alpha_of_steps(rate=1e-4, steps=50)
        100.0
    """
    return 1 / (2 * rate * steps)
