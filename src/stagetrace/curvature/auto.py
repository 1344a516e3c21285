"""The default curvature: the Hessian where it can be inverted, Gauss-Newton where it cannot."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.choices import Curvature, GaussNewton, Hessian
from stagetrace.curvature.cost import Cost
from stagetrace.curvature.ekfac import EKFAC
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.operator import LinearOperator, SumOperator
from stagetrace.curvature.shares import Shares
from stagetrace.curvature.subset import COUPLED, ENOUGH, Count, subset_text, weighed, weighed_subset
from stagetrace.objectives.objective import splits
from stagetrace.stages.bound import BoundStage


@final
@dataclass(frozen=True)
class Auto:
    """The exact Hessian, with the Gauss-Newton matrix as a fallback where the Hessian is indefinite.

    At a strict minimum the inverse Hessian predicts retraining. Where training stopped before one, some of its
    eigenvalues are negative, and its inverse treats them as curvatures of a minimum; there a solver with
    `damping="auto"` inverts `Gauss-Newton + |most negative eigenvalue|` in its place and says so in the Solution's
    notes. A solver with a fixed damping uses the Hessian alone (and so do `Normal` and the coupling between stages,
    which is always exact). An objective that is a plain loss function has no Gauss-Newton matrix: the Hessian
    stays.

    Args:
        examples, seed, memory: as for `Hessian`, but the default is "auto": all of up to 1,000 examples, of more
            1,000 drawn by the seed. None takes all. Both matrices average over the same examples.

    Source: measured against retraining in `docs/how-to-choose.md`.

    Example:
        >>> Auto(examples=100)
        Auto(examples=100, seed=0)
    """

    examples: Count = "auto"
    seed: int = 0
    memory: int | None = None

    def __post_init__(self) -> None:
        Hessian(self.examples, self.seed, self.memory)  # checks the settings

    def __repr__(self) -> str:
        return f"Auto(examples={self.examples!r}, seed={self.seed})"

    def operator(self, bound: BoundStage) -> LinearOperator:
        hessian = Hessian(self.examples, self.seed, self.memory).operator(bound)
        if not splits(bound.stage.loss):
            return hessian
        return HessianWithFallback(hessian, bound, GaussNewton(self.examples, self.seed, self.memory))

    def indices(self, bound: BoundStage) -> Sequence[int]:
        return Hessian(self.examples, self.seed).indices(bound)


@final
class HessianWithFallback(LinearOperator):
    """A stage's Hessian, and its Gauss-Newton matrix once it is asked for."""

    def __init__(self, hessian: LinearOperator, bound: BoundStage, fallback: GaussNewton) -> None:
        self.hessian, self._bound, self._fallback = hessian, bound, fallback
        self.size, self.dtype, self.device = hessian.size, hessian.dtype, hessian.device

    @property
    def psd_approximation(self) -> LinearOperator:
        return self._built

    @property
    def rounding(self) -> float:
        return self.hessian.rounding

    @property
    def shares(self) -> Shares:
        return self.hessian.shares

    @cached_property
    def _built(self) -> LinearOperator:
        self.hessian.release()  # it gives way: what it holds in memory is the other's
        built = self._fallback.operator(self._bound)
        if isinstance(built, SumOperator) and isinstance(built.left, MeanCurvature):
            built.left.share(self.hessian)
        return built

    def apply(self, vectors: Tensor) -> Tensor:
        return self.hessian.apply(vectors)

    def subsample(self, examples: int, generator: torch.Generator) -> LinearOperator:
        return self.hessian.subsample(examples, generator)

    def cost(self) -> Cost | None:
        return self.hessian.cost()

    def release(self) -> None:
        self.hessian.release()


def coupling_indices(curvature: Curvature, bound: BoundStage, columns: int) -> Sequence[int]:
    """The examples whose mixed derivative couples a stage to the one before: its curvature's, or by the rule more.

    columns: right-hand sides, for each of which they are multiplied once.
    """
    if isinstance(curvature, Auto | Hessian | GaussNewton | EKFAC) and curvature.examples == "auto":
        return weighed_subset(bound, weighed(bound, max(ENOUGH, COUPLED // columns)), curvature.seed)
    return curvature.indices(bound)


def describe_subset(curvature: Curvature, bound: BoundStage) -> str | None:
    """Which of a stage's examples a curvature averages over, as text; None where it is all of them."""
    chosen, total, weights = curvature.indices(bound), len(bound.stage.examples), bound.stage.example_weights
    if len(chosen) == total or not isinstance(curvature, Auto | Hessian | GaussNewton | EKFAC):
        return None
    weight = None if weights is None else float(weights[list(chosen)].mean() / weights.mean())
    return subset_text(len(chosen), total, curvature.examples, curvature.seed, weight)
