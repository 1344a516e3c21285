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

# what is solved, the two nouns and the verb
from stagetrace.solvers.base import Damping as Damping
from stagetrace.solvers.base import Inverse as Inverse
from stagetrace.solvers.base import Solution as Solution
from stagetrace.solvers.base import Solver as Solver
from stagetrace.solvers.base import Spectrum as Spectrum
from stagetrace.solvers.base import Status as Status
from stagetrace.solvers.base import solve as solve

# solvers
from stagetrace.solvers.cg import CG as CG

# which system of an operator
from stagetrace.solvers.damping import Fixed as Fixed
from stagetrace.solvers.damping import FromSpectrum as FromSpectrum
from stagetrace.solvers.direct import Direct as Direct
from stagetrace.solvers.early_stopping import EarlyStopping as EarlyStopping
from stagetrace.solvers.filters import Filter as Filter
from stagetrace.solvers.filters import Shift as Shift
from stagetrace.solvers.filters import Tikhonov as Tikhonov
from stagetrace.solvers.flow import Flow as Flow
from stagetrace.solvers.lanczos import Lanczos as Lanczos
from stagetrace.solvers.lissa import LiSSA as LiSSA
from stagetrace.solvers.normal import Normal as Normal
from stagetrace.solvers.system import Equation as Equation
from stagetrace.solvers.system import System as System
