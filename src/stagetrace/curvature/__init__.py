"""A stage's curvature as a linear operator."""

from stagetrace.curvature.auto import Auto as Auto
from stagetrace.curvature.choices import GaussNewton as GaussNewton
from stagetrace.curvature.choices import Hessian as Hessian
from stagetrace.curvature.choices import Identity as Identity
from stagetrace.curvature.operator import LinearOperator as LinearOperator
