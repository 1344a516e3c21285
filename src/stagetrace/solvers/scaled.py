"""An operator in another metric: what an optimiser with a rate of its own for each entry sees of a curvature."""

from typing import final

from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.curvature.shares import Shares


@final
class ScaledOperator(LinearOperator):
    """`v -> D^-1/2 H D^-1/2 v + decay v`.

    root: `D^-1/2`, `[dim, 1]`. decay: a number, or `[dim, 1]`.

    Example:
        >>> import torch
        >>> from stagetrace.curvature.operator import IdentityOperator
        >>> ScaledOperator(IdentityOperator(2, torch.float32), torch.tensor([[2.0], [3.0]]), 1.0) @ torch.ones(2)
        tensor([ 5., 10.])
    """

    def __init__(self, operator: LinearOperator, root: Tensor | None, decay: float | Tensor) -> None:
        self.operator, self.root, self.decay = operator, root, decay
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device

    def apply(self, vectors: Tensor) -> Tensor:
        image = self.operator @ vectors if self.root is None else self.root * (self.operator @ (self.root * vectors))
        return image + self.decay * vectors

    @property
    def rounding(self) -> float:
        return self.operator.rounding

    @property
    def shares(self) -> Shares:
        return self.operator.shares
