"""EK-FAC: a fast approximation of the Gauss-Newton matrix whose inverse is in closed form."""

from stagetrace.curvature.ekfac.choice import EKFAC, stays_diagonal
from stagetrace.curvature.ekfac.operator import EKFACOperator

__all__ = ["EKFAC", "EKFACOperator", "stays_diagonal"]
