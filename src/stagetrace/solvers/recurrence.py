"""The Lanczos recurrence: `H Q = Q T + beta q e'`, one product a step, whatever happens to the vectors."""

from typing import Protocol, cast, final

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal, eigvalsh_tridiagonal
from torch import Tensor

from stagetrace.solvers.vectors import dot, norm

# A next beta below this many roundings of |T| is rounding noise: the Krylov space has no further direction.
ROUNDINGS = 32


class LanczosVectors(Protocol):
    """What a Lanczos run stores of its vectors: all of them, or only what the solutions need."""

    @property
    def full(self) -> bool:
        """Whether the vectors span the whole space, so that no further direction can be orthogonal to them."""
        ...

    def keep(self, q: Tensor) -> None:
        """Store the next basis vector `[dim]`, where vectors are stored."""
        ...

    def orthogonalise(self, w: Tensor) -> Tensor:
        """`w` `[dim]` without its components along the vectors stored."""
        ...


@final
class Tridiagonal:
    """The projected operator `T = Q' H Q`, in float64: `alphas` on its diagonal, `betas` beside it."""

    def __init__(self) -> None:
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.norm = 0.0

    def extend(self, alpha: float, beta: float) -> None:
        previous = self.betas[-1] if self.betas else 0.0
        self.alphas.append(alpha)
        self.betas.append(beta)
        self.norm = max(self.norm, abs(alpha) + previous + beta)

    def ritz(self) -> tuple[float, ...]:
        """The eigenvalues of `T`, ascending."""
        if not self.alphas:
            return ()
        return tuple(cast("np.ndarray", eigvalsh_tridiagonal(self.alphas, self.betas[:-1])).tolist())

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The eigenvalues, ascending, and the eigenvectors as columns."""
        return cast("tuple[np.ndarray, np.ndarray]", eigh_tridiagonal(self.alphas, self.betas[:-1]))

    def extremes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The smallest and the largest eigenvalue of `T`, each with a bound on how far `H` has one from it.

        The bound is the residual of the Ritz pair, `beta |last entry of T's eigenvector|` (Parlett 1998, section 13.2).
        """
        values, vectors = self.pairs()
        bounds = self.betas[-1] * abs(vectors[-1])
        return (float(values[0]), float(bounds[0])), (float(values[-1]), float(bounds[-1]))


@final
class Recurrence:
    """One run from the start vector `b` `[dim]`: send it `H q`, and it has the next `q`.

    q: the unit vector to be multiplied next. T: the projected operator so far. length: `|b|`, not zero.
    exhausted: the products have left the Krylov space no new direction; the last beta was set to zero.
    level: what counts as zero among numbers of the size of T.

    Source: Lanczos (1950); Paige (1972) for the order of the operations.
    """

    def __init__(self, b: Tensor, length: float, vectors: LanczosVectors) -> None:
        self.T = Tridiagonal()
        self.q = b / length
        self.exhausted = False
        self._before = torch.zeros_like(b)
        self._vectors = vectors
        self._rounding = ROUNDINGS * torch.finfo(b.dtype).eps

    @property
    def level(self) -> float:
        return self._rounding * self.T.norm

    def advance(self, product: Tensor) -> tuple[float, float]:
        """Take `H q`; returns the new `(alpha, beta)` of T."""
        self._vectors.keep(self.q)
        beta_before = self.T.betas[-1] if self.T.betas else 0.0
        w = torch.sub(product, self._before, alpha=beta_before)  # w = H q_j - beta_{j-1} q_{j-1}
        alpha = dot(self.q, w)  # alpha_j = q_j'w
        w = self._vectors.orthogonalise(torch.sub(w, self.q, alpha=alpha))  # w -= alpha_j q_j
        beta = norm(w)  # beta_j = |w|
        self.T.extend(alpha, beta)
        self.exhausted = beta <= self.level or self._vectors.full
        if self.exhausted:
            self.T.betas[-1] = beta = 0.0
        else:
            self._before, self.q = self.q, w / beta  # q_{j+1} = w / beta_j
        return alpha, beta
