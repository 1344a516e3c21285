"""Estimators that several experiments compare, and ways to wrap one: another pull, polished stages, a saved trace."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from stagetrace import Chain, Lanczos, Query, trace
from stagetrace.curvature.choices import Curvature
from stagetrace.progress import Progress
from stagetrace.results.sign import UNIT
from stagetrace.solvers import Shift
from stagetrace.solvers.base import Solver
from stagetrace.validation import BM25, EmbeddingSimilarity, Estimator, GradientDot, Random, polish

OURS, DEFAULT = "multi-stage influence", "multi-stage, the default"
GAUSS_NEWTON = "multi-stage, Gauss-Newton + 0.1"
OF_STEPS = "multi-stage, Gauss-Newton + 0.1, alpha of the steps"
IDENTITY = "identity curvature"
EXACT = "exact, through the steps"


def shifted(damping: float, **options: Any) -> Lanczos:
    """A solver that adds the damping to the curvature."""
    return Lanczos(damping=damping, filter=Shift, **options)


def controls(
    embedding: str | Callable[..., Tensor], seed: int, text: str | Callable[..., str] | None = None
) -> list[Estimator]:
    """The rivals without a curvature; text: the column of a text, or what makes one of an example."""
    words = [] if text is None else [BM25(text)]
    return [GradientDot(), EmbeddingSimilarity(embedding), *words, Random(seed)]


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


def with_alpha(chain: Chain, alpha: float | str) -> Chain:
    """The chain with another pull at its last stage."""
    last = chain.stages[-1]
    again = replace(last, link=replace(last.link, alpha=alpha))  # pyright: ignore[reportArgumentType,reportCallIssue]
    return Chain(*chain.stages[:-1], again)


@final
@dataclass(frozen=True)
class Wrapped:
    """An estimator on another form of the chain and the query.

    change: from the chain, the query and the progress to what `inner` is given.
    """

    inner: Estimator
    name: str
    change: Callable[[Chain, Query, Progress | None], tuple[Chain, Query]]

    @property
    def unit(self) -> str | None:
        return self.inner.unit

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        chain, query = self.change(chain, query, progress)
        return self.inner.removal_effects(chain, query, stage, progress)


def alpha_override(alpha: float | str, inner: Estimator, name: str) -> Wrapped:
    """The estimator with another pull at the last stage."""
    return Wrapped(inner, name, lambda chain, query, _: (with_alpha(chain, alpha), query))


def polished(inner: Estimator, name: str) -> Wrapped:
    """The estimator on the chain with every stage brought to its strict minimum first."""
    return Wrapped(inner, name, lambda c, q, p: (polish(c, tolerance=1e-8, max_steps=1000, progress=p).chain, q))


def on_rows(inner: Estimator) -> Wrapped:
    """The estimator on the rows behind stages and query of `stagetrace.hf`, such as `on_rows(BM25("text"))`."""

    def plain(chain: Chain, query: Query, _: Progress | None) -> tuple[Chain, Query]:
        stages = [replace(each, data=each.data.rows, collate=list) for each in chain.stages]
        return Chain(*stages), replace(query, data=query.data.rows, collate=list)

    return Wrapped(inner, inner.name, plain)


@final
@dataclass(frozen=True)
class SavedInfluence:
    """As `stagetrace.validation.Influence`; the trace of every stage is saved in `folder`, or read if it is there.

    What is reported of a trace and what is compared with retraining is then one run.
    """

    folder: Path
    curvature: Mapping[str, Curvature]
    solver: Solver
    name: str
    unit: str | None = UNIT

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        options: Any = {"curvature": self.curvature, "solver": self.solver, "out": self.folder}
        return trace(chain, query, **options, progress=progress or False)[stage].removal_effect
