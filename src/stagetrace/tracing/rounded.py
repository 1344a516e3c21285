"""Whether a solver is asked for more digits than products in a chosen precision have."""

from typing import Any

from stagetrace.checks import Finding, Level
from stagetrace.curvature.cost import Cost
from stagetrace.solvers.base import Solver
from stagetrace.solvers.together import tolerance

__all__ = ["too_fine"]


def too_fine(stage: str, cost: Cost | None, solver: Solver, columns: int) -> Finding | None:
    """The warning that a residual is asked for that is smaller than the error of a product; None where it is not.

    columns: right-hand sides.
    """
    if cost is None or cost.product_error is None:
        return None
    asked: Any = getattr(solver, "rtol", None) or getattr(getattr(solver, "inner", None), "rtol", None)
    rtol = None if asked is None else tolerance(asked, columns)
    if rtol is None or rtol >= cost.product_error:
        return None
    text = (
        f"products in {cost.precision} are off by {cost.product_error:.1e} of their size, and the solver is asked for "
        f"a relative residual of {rtol:g}: what it reaches below {cost.product_error:.1e} is a residual of the rounded "
        f"curvature; type rtol={cost.product_error:.0e}, or leave precision out"
    )
    return Finding(stage, "precision of products", Level.WARNING, text)
