"""The choice of EK-FAC: a fast approximation of the Gauss-Newton matrix with an inverse in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch

from stagetrace.curvature.ekfac.blocks import Block
from stagetrace.curvature.ekfac.factors import Factor, factor_of
from stagetrace.curvature.ekfac.fit import Plan, fit, fitting
from stagetrace.curvature.ekfac.kept import kept_or_fitted
from stagetrace.curvature.ekfac.operator import EKFACOperator, GaussNewtonOnce
from stagetrace.curvature.ekfac.shares import check_shares, coverage_text
from stagetrace.curvature.memory import allowance
from stagetrace.curvature.operator import DiagonalOperator, LinearOperator
from stagetrace.curvature.subset import Count, check_subset, subset
from stagetrace.errors import refuse
from stagetrace.objectives.objective import splits
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.sizes import by_size
from stagetrace.stages.stage import check_count
from stagetrace.taps.find import Tapped, probe_of, tap
from stagetrace.taps.groups import groups_of

__all__ = ["EKFAC", "stays_diagonal"]


@final
@dataclass(frozen=True)
class EKFAC:
    """A fast approximation of the Gauss-Newton matrix: layer by layer, in a basis of each layer's inputs and outputs.

    Layers do not interact in it, and within a layer only the diagonal in the basis is kept. Its inverse is in closed
    form, so any number of queries costs two passes over the examples and then next to nothing. What it is not: the
    Gauss-Newton matrix. On a convolutional network of 11,780 parameters its scores correlated by 0.70 with those of the
    exact solve, and 56 of the 100 most harmful examples were the same (`docs/benchmarks.md`); the Solution's notes say
    how far its answer is from solving this model's own Gauss-Newton system.

    Every trained parameter is covered: the weights of `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` and transformers' `Conv1D`
    with their biases by a basis of both sides; embeddings, tied heads and sides longer than 4,096 by a basis of one
    side; parameters of up to `exact` entries by their exact Gauss-Newton block; everything else by the diagonal. The
    notes say what covers how many parameters. Needs an objective split into outputs and losses.

    Labels: an exact expectation for up to 32 outputs per example; for token classes and more outputs draws.

    Args:
        examples, seed, memory: as for `Hessian`; "auto" takes as many examples as the default curvature does.
        draws: of labels or signs per example, where they are drawn.
        exact: the most entries of an exact block. 0: none.
        cache: a folder in which the fit is kept, by a digest of model, data and settings; None keeps nothing.

    Raises:
        DescriptionError: a setting out of range; (from `operator`) the loss has no known root, see the message.

    Source: George et al. (2018), algorithm 1; Grosse et al. (2023) for influence; the derivation is in
    `stagetrace/curvature/ekfac/fit.py`.

    Example:
        For a single layer, one output and one example it is the Gauss-Newton matrix itself, `2 x x'`.

        >>> from stagetrace import Chain, Stage
        >>> from stagetrace.objectives import Regression
        >>> data = torch.utils.data.TensorDataset(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1))
        >>> fit = Stage("fit", model=torch.nn.Linear(2, 1, bias=False), objective=Regression(), data=data)
        >>> EKFAC().operator(Chain(fit)["fit"]).to_dense().round(decimals=4)
        tensor([[2., 4.],
                [4., 8.]])
    """

    examples: Count = "auto"
    seed: int = 0
    memory: int | None = None
    draws: int = 1
    exact: int = 512
    cache: str | Path | None = None

    def __post_init__(self) -> None:
        check_subset("EKFAC", self.examples, self.seed, self.memory)
        check_count(self.draws, "EKFAC(draws=...)")
        check_count(self.exact, "EKFAC(exact=...)", least=0)

    def operator(self, bound: BoundStage) -> LinearOperator:
        if not splits(bound.stage.loss):
            refuse(
                f"{bound.stage.where}: EKFAC needs the model's outputs, but the objective is a plain loss "
                "function; give an objective with outputs(model, batch) and losses(outputs, batch), or use Hessian()"
            )
        risk = bound.risk
        tapped, probe = tap(risk), probe_of(risk)
        with torch.no_grad():
            outputs = risk.outputs(risk.trained_values, risk.inherited_values, probe)
        factor = factor_of(risk.unweighted, probe, outputs)  # of a loss times 0 every kind is one
        indices, _ = by_size(risk.examples, self.indices(bound))
        check_shares(tapped)
        notes = [coverage_text(tapped, self.exact, factor, self.draws)]
        memory = allowance(self.memory, bound.trained.device)
        plan = Plan(indices, self.draws, self.seed, self.exact, memory, fitting(tapped, memory))
        exact = GaussNewtonOnce(risk, indices, plan.batch_size)
        fitted = partial(self._fitted, bound, tapped, factor, plan)
        return EKFACOperator(risk.trained, fitted, exact, notes) + DiagonalOperator(bound.penalty)

    def indices(self, bound: BoundStage) -> Sequence[int]:
        return subset(bound, self.examples, self.seed)

    def _fitted(self, bound: BoundStage, tapped: Tapped, factor: Factor, plan: Plan) -> Sequence[Block]:
        return kept_or_fitted(self.cache, bound, plan, lambda: fit(tapped, factor, plan))


def stays_diagonal(bound: BoundStage) -> bool:
    """Whether the stage's penalties are the same within each group of parameters, and so diagonal in EK-FAC's basis."""
    penalty = bound.penalty
    pulls = [[penalty[p.start : p.start + p.size] for p in group.layout.pieces] for group in groups_of(bound.risk)]
    return all(bool((each == group[0][:1]).all()) for group in pulls for each in group)
