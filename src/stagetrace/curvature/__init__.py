"""A stage's curvature as a linear operator."""

from stagetrace.curvature.auto import Auto
from stagetrace.curvature.choices import GaussNewton, Hessian, Identity
from stagetrace.curvature.ekfac import EKFAC
from stagetrace.curvature.operator import LinearOperator

__all__ = [
    "EKFAC",
    "Auto",
    "GaussNewton",
    "Hessian",
    "Identity",
    "LinearOperator",
]
