"""Inverse-times-vector: `solver.prepare(system).solve(rhs) -> Solution`. Knows operators and vectors, no models.

`solver.rule(operator)` makes the system; `solve(operator, rhs, solver)` is all three in one.

system                            solver
(H^2 + damping I) x = H b         Lanczos(damping=...)                         one product a step: start here
                                  Normal(CG(), damping=...)                    the paper's way, two products a step
                                  Direct(damping=...)                          dense, exact, for small operators
(H + damping I) x = b             Lanczos(damping=..., filter=Shift)           any symmetric H
                                  CG(damping=...)                              positive definite H + damping I
                                  LiSSA(damping=...)                           stochastic, over drawn examples
                                  Direct(damping=..., filter=Shift)            dense, exact
H x = b                           Direct(), CG(), Lanczos(damping=0.0)         the plain inverse
x = phi_t(H) b                    EarlyStopping(time=...)                      what training that stopped did instead

With damping="auto" each of them takes the damping from the operator's spectrum, see `damping.py`.
"""

from stagetrace.solvers.base import Damping, Inverse, Solution, Solver, Status, solve
from stagetrace.solvers.cg import CG
from stagetrace.solvers.damping import Fixed, FromSpectrum
from stagetrace.solvers.direct import Direct
from stagetrace.solvers.early_stopping import EarlyStopping
from stagetrace.solvers.filters import Filter, Shift, Tikhonov
from stagetrace.solvers.flow import Flow
from stagetrace.solvers.lanczos import Lanczos
from stagetrace.solvers.lissa import LiSSA
from stagetrace.solvers.normal import Normal
from stagetrace.solvers.system import Equation, Spectrum, System

__all__ = [
    "CG",
    "Damping",
    "Direct",
    "EarlyStopping",
    "Equation",
    "Filter",
    "Fixed",
    "Flow",
    "FromSpectrum",
    "Inverse",
    "Lanczos",
    "LiSSA",
    "Normal",
    "Shift",
    "Solution",
    "Solver",
    "Spectrum",
    "Status",
    "System",
    "Tikhonov",
    "solve",
]
