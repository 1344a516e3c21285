"""A symmetric operator in a basis of its eigenvectors, where any function of it is a multiplication."""

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from stagetrace.errors import SolveError

__all__ = ["Basis", "Eigen", "at_once", "require_finite"]

BYTES, CACHED, FEWEST = 2**28, 2**23, 64
"""Bytes of coordinates in float64 that are held at once: at most; if that is `FEWEST` columns, no more than memory near
the processor holds."""


def at_once(dim: int) -> int:
    """Columns `[dim]` that are turned together.

    Example:
        >>> at_once(1_000), at_once(100_000), at_once(10_000_000)
        (1048, 64, 3)
    """
    return max(1, min(BYTES // (8 * max(1, dim)), max(FEWEST, CACHED // (8 * max(1, dim)))))


class Basis(Protocol):
    """An orthogonal basis that is no matrix in memory: a product of small ones, block by block."""

    def into(self, columns: Tensor) -> Tensor:
        """The coordinates of vectors `[dim, k]`."""
        ...

    def out(self, coordinates: Tensor) -> Tensor:
        """The vectors with these coordinates."""
        ...

    def turned(self, diagonal: Tensor) -> Tensor | None:
        """The diagonal in these coordinates of a matrix that is diagonal `[dim]` in the axes; None if it is not."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Eigen:
    """Eigenvalues `[dim]` in float64, and eigenvectors as the columns of `[dim, dim]`; None: the coordinate axes.

    asymmetry: of the matrix that they were computed from, over its largest entry. basis: in the place of `vectors`.

    Example:
        >>> turned = Eigen.of(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), "a matrix", rounding=1e-7)
        >>> turned.values
        tensor([-2.,  2.], dtype=torch.float64)
        >>> turned.out(1 / turned.values.unsqueeze(1) * turned.into(torch.tensor([[2.0], [4.0]])))
        tensor([[2.0000],
                [1.0000]], dtype=torch.float64)
    """

    values: Tensor
    vectors: Tensor | None = None
    asymmetry: float = 0.0
    basis: Basis | None = None

    @property
    def known(self) -> bool:
        """Whether no matrix was decomposed for it: the eigenvalues are then as exact as they are written."""
        return self.vectors is None

    @staticmethod
    def of(matrix: Tensor, name: str, rounding: float) -> "Eigen":
        """Of a dense matrix `[dim, dim]`, in float64; name: how messages call it. rounding: of its entries.

        Raises:
            SolveError: it is not finite, or farther from symmetric than rounding goes.
        """
        matrix = matrix.double()
        require_finite(matrix, f"{name} written as a matrix")
        # Sums over many examples are rounded too: half the digits that a product has is generous.
        asymmetry, scale = float((matrix - matrix.T).abs().max()), float(matrix.abs().max())
        if asymmetry > rounding**0.5 * scale:
            raise SolveError(
                f"{name} is not symmetric: entries differ from their mirror by up to {asymmetry:.1e} "
                f"(largest entry {scale:.1e}). A curvature must give the same product every time: put the model in "
                f"eval mode and fix the order of the data"
            )
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        return Eigen(values, vectors, asymmetry / scale if scale else 0.0)

    def into(self, columns: Tensor) -> Tensor:
        """The coordinates of vectors `[dim, k]` in the basis, in float64."""
        if self.basis is not None:
            return self.basis.into(columns.double())
        return columns.double() if self.vectors is None else self.vectors.T @ columns.double()

    def out(self, coordinates: Tensor) -> Tensor:
        """The vectors with these coordinates."""
        if self.basis is not None:
            return self.basis.out(coordinates)
        return coordinates if self.vectors is None else self.vectors @ coordinates

    def scaled(self, gains: Tensor, columns: Tensor) -> Tensor:
        """`V diag(gains) V'` times vectors `[dim, k]`, some at a time, in their own dtype; gains: `[dim]`."""
        step = at_once(columns.shape[0])
        parts = [
            self.out(gains.unsqueeze(1) * self.into(part)).to(columns.dtype) for part in columns.split(step, dim=1)
        ]
        return torch.cat(parts, dim=1) if parts[1:] else parts[0]

    def plus(self, other: "Eigen") -> "Eigen | None":
        """Of the sum of the two operators, if one basis serves both; None if not."""
        for one, two in ((self, other), (other, self)):
            if two.vectors is not None or two.basis is not None:
                continue  # no diagonal
            turned = two.values if one.basis is None else one.basis.turned(two.values)
            alike = bool((two.values == two.values[:1]).all())
            if turned is not None and (one.vectors is None or alike):
                return Eigen(one.values + turned, one.vectors, one.asymmetry, one.basis)
        return None


def require_finite(columns: Tensor, what: str) -> None:
    """Raise a `SolveError` that names `what` and its columns with NaN or infinity."""
    if bool(torch.isfinite(columns.sum())):  # a sum takes nothing away from infinity or NaN, and a tenth of the time
        return
    bad = (~torch.isfinite(columns)).any(dim=0).nonzero().flatten().tolist()
    if bad:
        others = f" and {len(bad) - 1} more" if bad[1:] else ""
        raise SolveError(f"{what} is not finite in column {bad[0]}{others}: it has NaN or infinity")
