"""The bytes of vectors that a solver holds at most, by its own rules and by count."""

import torch

from stagetrace.curvature.shares import ALONE, Shares
from stagetrace.solvers import CG, Direct, EarlyStopping, Lanczos, LiSSA, Normal
from stagetrace.solvers.base import Solver
from stagetrace.solvers.krylov import Memory
from stagetrace.solvers.settings import step_limit
from stagetrace.solvers.shared_basis import CG_VECTORS
from stagetrace.solvers.short_recurrence import VECTORS_PER_RUN, VECTORS_PER_SHIFT
from stagetrace.solvers.together import MANY

__all__ = ["solver_bytes"]

DENSE = 4 * 8
"""Bytes an entry of a direct solve's matrix, its float64 copy, the eigenvectors and the decomposition's work space."""

OTHERS = 10
"""Vectors a right-hand side, of a solver that is not counted."""


def solver_bytes(solver: Solver, size: int, dtype: torch.dtype, columns: int, shares: Shares = ALONE) -> int:
    """Bytes, beside the right-hand sides and the answers, for `columns` right-hand sides of `size` entries.

    shares: of the operator, whose processes each store a piece of every basis vector; the bytes are of one of them.

    Example:
        >>> solver_bytes(CG(), 1000, torch.float64, 2), solver_bytes(Lanczos(max_steps=20), 1000, torch.float64, 1)
        (128000, 176000)
    """
    vector = size * dtype.itemsize
    if isinstance(solver, Direct):
        return DENSE * size**2 if size <= solver.max_size else OTHERS * vector * columns
    if isinstance(solver, (Lanczos, EarlyStopping)):
        steps = min(step_limit(solver) or size, size)
        right = torch.empty(size, columns, dtype=dtype, device="meta")
        plan = Memory.plan(right, 1, steps, solver.memory, shares)
        kept = steps * shares.largest_piece(size) * dtype.itemsize + 2 * vector
        each = kept if plan.full_basis else (VECTORS_PER_RUN + VECTORS_PER_SHIFT) * vector
        alone = each * min(plan.group, columns)
        # several share a basis or the rows of the examples, and as much again for a block of them
        return max(alone, 2 * solver.memory) if _shares(solver, columns) else alone
    if isinstance(solver, (CG, Normal, LiSSA)):
        return CG_VECTORS * vector * columns
    return OTHERS * vector * columns


def _shares(solver: Solver, columns: int) -> bool:
    if not isinstance(solver, Lanczos) or solver.many == "separate":
        return False
    return columns >= MANY or (columns > 1 and solver.many != "auto")
