"""Checks of right-hand sides that all solvers share, and the shape of their answers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stagetrace.curvature.eigen import require_finite
from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import refuse


def relative(size: float, reference: float) -> float:
    """`size / reference`, with `0 / 0 = 0`."""
    if reference > 0:
        return size / reference
    return 0.0 if size == 0 else float("inf")


def as_columns(operator: LinearOperator, rhs: Tensor) -> Tensor:
    """The right-hand side as a matrix `[dim, k]`, after checks.

    Raises:
        DescriptionError: its shape or dtype does not fit the operator.
        SolveError: it is not finite.
    """
    if rhs.ndim not in (1, 2) or rhs.shape[0] != operator.size:
        refuse(f"solve needs a right-hand side [{operator.size}] or [{operator.size}, k], got {list(rhs.shape)}")
    if rhs.dtype != operator.dtype:
        refuse(f"the right-hand side is {rhs.dtype}, the operator {operator.dtype}: pass rhs.to({operator.dtype})")
    columns = rhs.detach() if rhs.ndim == 2 else rhs.detach().unsqueeze(1)
    require_finite(columns, "the right-hand side")
    return columns


def stack_columns(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    """The vectors as the columns of a matrix, in the shape of the right-hand side `like`."""
    if not vectors:
        return torch.zeros_like(like)
    return torch.stack(list(vectors), dim=1).reshape(like.shape)
