"""The curvatures a user chooses from: what stands for a stage's second derivative."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.memory import allowance
from stagetrace.curvature.operator import DiagonalOperator, IdentityOperator, LinearOperator
from stagetrace.curvature.plan import Matrix
from stagetrace.curvature.subset import Count, check_subset, subset
from stagetrace.errors import refuse
from stagetrace.objectives.objective import splits
from stagetrace.stages.bound import BoundStage


class Curvature(Protocol):
    """A choice of curvature; `operator` builds it for a stage at its place in a chain."""

    def operator(self, bound: BoundStage) -> LinearOperator:
        """The curvature in the stage's trained parameters, `[trained.size, trained.size]`, penalties included."""
        ...

    def indices(self, bound: BoundStage) -> Sequence[int]:
        """The stage's examples it averages over."""
        ...


@final
@dataclass(frozen=True)
class Hessian:
    """The exact Hessian of what the stage minimised: mean loss, weight decay and proximal pull.

    `H = (1/n) sum_i d2 loss_i + weight_decay I + 2 alpha P_W`. It may be indefinite away from a minimum.

    Args:
        examples: how many of the stage's examples to average over; None takes all, "auto" as many as the default's
            rule says (`subset.py`). A subset is drawn without replacement by `seed` and used for the coupling between
            stages too.
        seed: of the draw.
        memory: bytes that intermediates may take per process; beyond it products are recomputed, chunk by chunk. None
            is 2 GiB on a CPU and a third of a GPU's memory.

    Source: Chen et al. (2020), eq. 9-15; Pearlmutter (1994) for the products.

    Example:
        Ridge regression, loss `mean (w . x - y)^2 + weight_decay / 2 |w|^2`: H is `2 X'X / n + weight_decay I`.

        >>> import torch
        >>> from stagetrace import Chain, Stage
        >>> from stagetrace.objectives import Regression
        >>> X, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.zeros(2, 1)
        >>> ridge = Stage("ridge", model=torch.nn.Linear(2, 1, bias=False), objective=Regression(),
        ...               data=torch.utils.data.TensorDataset(X, y), weight_decay=0.5)
        >>> Hessian().operator(Chain(ridge)["ridge"]).to_dense()
        tensor([[2.5000, 2.0000],
                [2.0000, 4.5000]])
    """

    examples: Count = None
    seed: int = 0
    memory: int | None = None

    def __post_init__(self) -> None:
        check_subset("Hessian", self.examples, self.seed, self.memory)

    def operator(self, bound: BoundStage) -> LinearOperator:
        return _mean_and_penalty(bound, "Hessian", self.indices(bound), self.memory)

    def indices(self, bound: BoundStage) -> Sequence[int]:
        return subset(bound, self.examples, self.seed)


@final
@dataclass(frozen=True)
class GaussNewton:
    """The Gauss-Newton part of the Hessian: `(1/n) sum_i J_i' (d2 loss_i / d outputs2) J_i` and the penalties.

    Positive semi-definite for the usual losses, so it can be inverted where the Hessian is indefinite; equal to the
    Hessian for linear models and where the loss's gradients at the outputs vanish. Needs an objective split into
    outputs and losses.

    Args:
        examples, seed, memory: as for `Hessian`.

    Source: Schraudolph (2002); Martens (2020), section 8.

    Example:
        For a linear model and a squared loss it is the Hessian: `2 X'X / n`.

        >>> import torch
        >>> from stagetrace import Chain, Stage
        >>> from stagetrace.objectives import Regression
        >>> X, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.zeros(2, 1)
        >>> fit = Stage("fit", model=torch.nn.Linear(2, 1, bias=False), objective=Regression(),
        ...             data=torch.utils.data.TensorDataset(X, y))
        >>> GaussNewton().operator(Chain(fit)["fit"]) @ torch.tensor([1.0, 1.0])
        tensor([4., 6.])
    """

    examples: Count = None
    seed: int = 0
    memory: int | None = None

    def __post_init__(self) -> None:
        check_subset("GaussNewton", self.examples, self.seed, self.memory)

    def operator(self, bound: BoundStage) -> LinearOperator:
        if not splits(bound.stage.loss):
            refuse(
                f"{bound.stage.where}: GaussNewton needs the model's outputs, but the objective is a plain loss "
                "function; give an objective with outputs(model, batch) and losses(outputs, batch), or use Hessian()"
            )
        return _mean_and_penalty(bound, "GaussNewton", self.indices(bound), self.memory)

    def indices(self, bound: BoundStage) -> Sequence[int]:
        return subset(bound, self.examples, self.seed)


@final
@dataclass(frozen=True)
class Identity:
    """The identity in place of the curvature, penalties left out: the gradient dot product.

    The coupling between stages stays exact. Source: the ablation of Chen et al. (2020), figure 3.

    Example:
        >>> Identity() == Identity()
        True
    """

    def operator(self, bound: BoundStage) -> LinearOperator:
        return IdentityOperator(bound.trained.size, bound.trained.dtype, bound.trained.device)

    def indices(self, bound: BoundStage) -> Sequence[int]:
        return range(len(bound.stage.examples))


def _mean_and_penalty(bound: BoundStage, matrix: Matrix, indices: Sequence[int], memory: int | None) -> LinearOperator:
    memory = allowance(memory, bound.trained.device)
    return MeanCurvature.planned(bound.risk, matrix, indices, memory) + DiagonalOperator(bound.penalty)
