"""How far the answer of an approximated curvature is from solving the system with the true one."""

from torch import Tensor

from stagetrace.curvature.operator import LinearOperator
from stagetrace.errors import StagetraceError, first_line
from stagetrace.solvers.base import Solution
from stagetrace.solvers.filters import Filter, Shift
from stagetrace.solvers.system import Equation
from stagetrace.solvers.vectors import dot, norm

__all__ = ["shortfall"]


def shortfall(operator: LinearOperator, rhs: Tensor, solution: Solution) -> tuple[str, ...]:
    """What a product or two with the true matrix say of the first column that is not zero; empty where it is solved."""
    true = operator.approximates
    live = rhs.any(dim=0).nonzero().flatten().tolist()
    if true is None or not live:
        return ()
    filter = solution.system.filter if isinstance(solution.system, Equation) else None
    if not isinstance(filter, Filter):
        return (
            "EK-FAC is an approximation; how far its answer is from the true Gauss-Newton matrix's was not measured",
        )
    b, x = rhs[:, live[0]], solution.value.reshape(rhs.shape)[:, live[0]]
    try:
        if isinstance(filter, Shift):
            return (_of_shift(true, b, x, filter.damping),)
        residual = filter.measure(true, b.unsqueeze(1), x.unsqueeze(1)).residual
    except (StagetraceError, RuntimeError, NotImplementedError) as cause:
        return (
            "EK-FAC is an approximation; how far its answer is from the true Gauss-Newton matrix's cannot be measured: "
            f"{first_line(cause)}",
        )
    return (_words(f"{residual:.2g}"),)


def _of_shift(true: LinearOperator, b: Tensor, x: Tensor, damping: float) -> str:
    images = [matrix @ x for matrix in true.draws]
    # r = b - (G + damping) x is linear in G. Of two independent draws of G the product of the residuals has |r|^2 as
    # its mean, where the square of one residual would have the spread of the draw in it.
    left, right = (b.double() - image.double() - damping * x.double() for image in (images[0], images[-1]))
    squared = dot(left, right) / dot(b, b)
    if squared < 0:  # the draw's spread hides it
        spread = norm(left - right) / norm(b)
        return _words(f"less than about {spread:.2g}", drawn=len(images) > 1)
    expected = dot(x, b)
    found = sum(dot(x, image) for image in images) / len(images) + damping * dot(x, x)
    along = f"; along it the true curvature is {found / expected:.2g} times what EK-FAC took it for" if expected else ""
    return _words(f"{squared**0.5:.2g}", drawn=len(images) > 1) + along


def _words(residual: str, *, drawn: bool = False) -> str:
    where = ", measured on some of the examples" if drawn else ""
    return (
        "EK-FAC is an approximation: in the system with the true Gauss-Newton matrix its answer leaves a relative "
        f"residual of {residual}{where} (a solution 0, no answer at all 1)"
    )
