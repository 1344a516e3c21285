"""Sums over long vectors in float64, and the checks that every solver makes of its right-hand side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import SolveError, refuse

# A float32 vector is widened to float64 this many entries (8 MiB) at a time, never as a whole.
CHUNK = 1 << 20


def dot(left: Tensor, right: Tensor) -> float:
    """`left . right` for `[dim]` vectors, accumulated in float64.

    Example:
        >>> big = torch.tensor([1e4, 1.0], dtype=torch.float32)
        >>> dot(big, big)  # float32 alone would answer 100000000.0
        100000001.0
    """
    total = torch.zeros((), dtype=torch.float64, device=left.device)
    for a, b in zip(left.split(CHUNK), right.split(CHUNK), strict=True):
        total += a.double() @ b.double()
    return float(total)


def norm(vector: Tensor) -> float:
    """The Euclidean length of a `[dim]` vector, accumulated in float64."""
    return dot(vector, vector) ** 0.5


def norm_of_sum(*terms: tuple[float, Tensor]) -> float:
    """`|c1 v1 + c2 v2 + ...|` for `[dim]` vectors, with the additions too in float64: a residual cancels.

    Example:
        >>> norm_of_sum((1.0, torch.tensor([3.0, 4.0])), (-1.0, torch.tensor([0.0, 4.0])))
        3.0
    """
    coefficients = [coefficient for coefficient, _ in terms]
    first = terms[0][1]
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    for pieces in zip(*(vector.split(CHUNK) for _, vector in terms), strict=True):
        summed = torch.zeros_like(pieces[0], dtype=torch.float64)
        for coefficient, piece in zip(coefficients, pieces, strict=True):
            summed += coefficient * piece.double()
        total += summed @ summed
    return float(total) ** 0.5


def relative(size: float, reference: float) -> float:
    """`size / reference`, where nothing over nothing is no error at all."""
    if reference > 0:
        return size / reference
    return 0.0 if size == 0 else float("inf")


def as_columns(operator: LinearOperator, rhs: Tensor) -> Tensor:
    """The right-hand side as a matrix `[dim, k]`, found fit to be solved for.

    Raises:
        DescriptionError: its shape or dtype is not the operator's.
        SolveError: it is not finite.
    """
    if rhs.ndim not in (1, 2) or rhs.shape[0] != operator.size:
        refuse(f"solve needs a right-hand side [{operator.size}] or [{operator.size}, k], got {list(rhs.shape)}")
    if rhs.dtype != operator.dtype:
        refuse(f"the right-hand side is {rhs.dtype}, the operator {operator.dtype}: pass rhs.to({operator.dtype})")
    columns = rhs.detach() if rhs.ndim == 2 else rhs.detach().unsqueeze(1)
    require_finite(columns, "the right-hand side")
    return columns


def require_finite(columns: Tensor, what: str) -> None:
    """Raise a `SolveError` that names `what` and its columns with NaN or infinity."""
    bad = (~torch.isfinite(columns)).any(dim=0).nonzero().flatten().tolist()
    if bad:
        others = f" and {len(bad) - 1} more" if bad[1:] else ""
        raise SolveError(f"{what} is not finite in column {bad[0]}{others}: it has NaN or infinity")


def stacked(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    """The vectors as the columns of a matrix, in the shape of the right-hand side `like`."""
    if not vectors:
        return torch.zeros_like(like)
    return torch.stack(list(vectors), dim=1).reshape(like.shape)
