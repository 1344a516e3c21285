"""Solvers by the names that the command line and `trace` take."""

from collections.abc import Mapping

from stagetrace.solvers.base import Solver
from stagetrace.solvers.cg import CG
from stagetrace.solvers.direct import Direct
from stagetrace.solvers.lanczos import Lanczos
from stagetrace.solvers.lissa import LiSSA
from stagetrace.solvers.normal import Normal

SOLVERS: Mapping[str, Solver] = {
    "lanczos": Lanczos(),
    "normal-cg": Normal(CG(), damping=1e-4),
    "cg": CG(),
    "lissa": LiSSA(),
    "direct": Direct(),
}
