"""Sums over long vectors: the one place where a solver adds up what a vector holds.

Lengths and inner products are taken in float64, whatever the vectors' dtype. Vectors are whole on every process; those
that are stored in numbers lie in pieces (`basis.py`), and their coordinates are added up over processes, all at once.

Where vectors themselves lie in pieces, `in_pieces` says so, and lengths and inner products here are of whole vectors.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from stagetrace.curvature.shares import Shares

# A float32 vector is widened to float64 this many entries (8 MiB) at a time, never as a whole.
CHUNK = 1 << 20

# The same where many vectors are added up.
PIECE = 1 << 15

# Of a GPU's memory: what the vectors of a run leave to the passes through the model.
KEPT_FREE = 0.25


_SUMMED: ContextVar[Callable[[Tensor], Tensor] | None] = ContextVar("summed", default=None)


@contextmanager
def in_pieces(shares: Shares) -> Generator[None]:
    """Take sums over whole vectors, where they lie in pieces on processes; all of them ask for the same sums."""
    token = _SUMMED.set(None if shares.entries is None else shares.summed)
    try:
        yield
    finally:
        _SUMMED.reset(token)


def _of_all(total: Tensor) -> Tensor:
    """A sum over this process's entries, over all entries."""
    summed = _SUMMED.get()
    return total if summed is None else summed(total)


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
    return float(_of_all(total))


def norm(vector: Tensor) -> float:
    """The Euclidean length of a `[dim]` vector, accumulated in float64."""
    return dot(vector, vector) ** 0.5


def norm_of_sum(*settings: tuple[float, Tensor]) -> float:
    """`|c1 v1 + c2 v2 + ...|` for `[dim]` vectors, with the additions too in float64: a residual cancels.

    Example:
        >>> norm_of_sum((1.0, torch.tensor([3.0, 4.0])), (-1.0, torch.tensor([0.0, 4.0])))
        3.0
    """
    coefficients = [coefficient for coefficient, _ in settings]
    first = settings[0][1]
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    for pieces in zip(*(vector.split(CHUNK) for _, vector in settings), strict=True):
        summed = torch.zeros_like(pieces[0], dtype=torch.float64)
        for coefficient, piece in zip(coefficients, pieces, strict=True):
            summed += coefficient * piece.double()
        total += summed @ summed
    return float(_of_all(total)) ** 0.5


def norms_of_sum(*settings: tuple[float, Tensor]) -> list[float]:
    """`|c1 V1 + c2 V2 + ...|` of each column of matrices `[dim, k]`, as `norm_of_sum` of one: row by row, which is how
    they lie in memory.

    Example:
        >>> norms_of_sum((2.0, torch.tensor([[3.0, 0.0], [4.0, 1.0]])))
        [10.0, 2.0]
    """
    first = settings[0][1]
    total = torch.zeros(first.shape[1], dtype=torch.float64, device=first.device)
    rows = max(1, CHUNK // max(1, first.shape[1]))
    for pieces in zip(*(matrix.split(rows) for _, matrix in settings), strict=True):
        summed = torch.zeros_like(pieces[0], dtype=torch.float64)
        for (coefficient, _), piece in zip(settings, pieces, strict=True):
            summed += coefficient * piece.double()
        total += (summed * summed).sum(dim=0)
    return _of_all(total).sqrt().tolist()


def combine(vectors: Sequence[Tensor], coordinates: Sequence[float], like: Tensor) -> Tensor:
    """The sum of vectors, each times its coordinate; vectors: the rows of matrices `[rows, dim]`.

    Example:
        >>> combine([torch.eye(2)], [3.0, 4.0], torch.zeros(2))
        tensor([3., 4.])
    """
    if not vectors:
        return torch.zeros_like(like)
    weights = torch.tensor(coordinates, dtype=torch.float64)
    parts = [w.to(rows.device) for w, rows in zip(weights.split([len(rows) for rows in vectors]), vectors, strict=True)]
    total = torch.zeros_like(like)
    for first in range(0, total.numel(), PIECE):
        piece = slice(first, first + PIECE)
        sums = [(w @ rows[:, piece].double()).to(like.device) for rows, w in zip(vectors, parts, strict=True)]
        total[piece] = torch.stack(sums).sum(0)
    return total


def without(w: Tensor, vectors: Sequence[Tensor], summed: Callable[[Tensor], Tensor] = lambda along: along) -> Tensor:
    """`w` `[dim]` less its components along orthonormal vectors, the rows of matrices `[rows, dim]`.

    summed: where `w` and the rows are pieces of vectors, the sum over the processes that have the others: one of all
        components, which are therefore taken of the same `w`.

    Example:
        >>> without(torch.tensor([3.0, 4.0]), [torch.tensor([[1.0, 0.0]])])
        tensor([0., 4.])
    """
    along = summed(torch.cat([(rows @ w.to(rows.device)).to(w.device) for rows in vectors]))
    for rows, part in zip(vectors, along.split([len(rows) for rows in vectors]), strict=True):
        w = w - (rows.T @ part.to(rows.device)).to(w.device)
    return w


def dots(left: Tensor, right: Tensor) -> Tensor:
    """The product of each column with the other's, `[k]`, in the columns' dtype.

    Example:
        >>> dots(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2))
        tensor([4., 6.])
    """
    return _of_all((left * right).sum(dim=0))


def lengths(columns: Tensor, scale: Tensor | None = None) -> Tensor:
    """The Euclidean length of each column, `[k]`, in float64 on the CPU; scale: `[dim, 1]`, of each entry.

    Some rows at a time: a sum down the columns of a wide matrix goes through the memory against its grain.

    Example:
        >>> lengths(torch.tensor([[3.0, 1.0], [4.0, 0.0]]))
        tensor([5., 1.], dtype=torch.float64)
    """
    total = torch.zeros(columns.shape[1], dtype=torch.float64, device=columns.device)
    rows = max(1, (CHUNK >> 2) // max(1, columns.shape[1]))
    for start in range(0, columns.shape[0], rows):
        piece = columns[start : start + rows].to(torch.float64, copy=True)
        if scale is not None:
            piece *= scale[start : start + rows]
        total += piece.square_().sum(dim=0)
    return _of_all(total).sqrt().cpu()


def nonzero(columns: Tensor) -> list[bool]:
    """Which columns of `[dim, k]` are not zero.

    Example:
        >>> nonzero(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        [False, True]
    """
    return (_of_all((columns != 0).any(dim=0).double()) > 0).tolist()


def inner(rows: Tensor, columns: Tensor) -> Tensor:
    """Every row of `[r, dim]` with every column of `[dim, k]`: `[r, k]`, in their dtype.

    Example:
        >>> inner(torch.eye(2), torch.tensor([[1.0], [2.0]])).flatten()
        tensor([1., 2.])
    """
    return (rows @ columns.to(rows.device)).to(columns.device)


def spanned(rows: Tensor, coordinates: Tensor) -> Tensor:
    """The sums of the rows of `[r, dim]`, weighted by each column of `[r, k]`: `[dim, k]`.

    Example:
        >>> spanned(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[3., 4.],
                [6., 8.]])
    """
    return (rows.mT @ coordinates.to(rows.device)).to(coordinates.device)


def gram(rows: Tensor, others: Tensor) -> Tensor:
    """Every row of `[r, dim]` with every one of `[s, dim]`, `[r, s]`, as float64 of sums in the rows' dtype."""
    return (rows @ others.mT).double()


def room(rows: int, like: Tensor) -> Tensor:
    """`[rows, dim]` to be filled, for vectors like `[dim]`: where that one lies, or in the CPU's memory where a GPU has
    none to spare. The functions here take rows of both kinds, and work where the rows lie.
    """
    if like.device.type == "cuda" and rows * like.numel() * like.element_size() > _spare(like.device):
        return torch.empty(rows, like.numel(), dtype=like.dtype, pin_memory=True)
    return like.new_empty(rows, like.numel())


def _spare(device: torch.device) -> int:
    """Bytes of a GPU that vectors may take: what is free there or held by PyTorch unused, but for a part that passes
    through the model need.
    """
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused - KEPT_FREE * total)
