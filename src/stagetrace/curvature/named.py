"""Curvatures by the names that the command line and `trace` take."""

from collections.abc import Mapping

from stagetrace.curvature.auto import Auto
from stagetrace.curvature.choices import Curvature, GaussNewton, Hessian, Identity
from stagetrace.curvature.ekfac import EKFAC

CURVATURES: Mapping[str, Curvature] = {
    "auto": Auto(),
    "hessian": Hessian(),
    "gauss-newton": GaussNewton(),
    "ekfac": EKFAC(),
    "identity": Identity(),
}
