"""stagetrace: trace what a fine-tuned model does back through every training stage to the examples that caused it.

This is the whole public contract; everything else may move.
"""

# describe
# curvature
from stagetrace.curvature import GaussNewton as GaussNewton
from stagetrace.curvature import Hessian as Hessian
from stagetrace.curvature import Identity as Identity
from stagetrace.objectives import Objective as Objective

# trace
from stagetrace.results import Scores as Scores
from stagetrace.results import Trace as Trace

# solve
from stagetrace.solvers import CG as CG
from stagetrace.solvers import Direct as Direct
from stagetrace.solvers import Lanczos as Lanczos
from stagetrace.solvers import LiSSA as LiSSA
from stagetrace.solvers import Normal as Normal
from stagetrace.solvers import Solution as Solution
from stagetrace.stages import Chain as Chain
from stagetrace.stages import Frozen as Frozen
from stagetrace.stages import Proximal as Proximal
from stagetrace.stages import Stage as Stage
from stagetrace.tracing import Query as Query
from stagetrace.tracing import trace as trace
from stagetrace.version import __version__ as __version__

__all__ = [
    "CG",
    "Chain",
    "Direct",
    "Frozen",
    "GaussNewton",
    "Hessian",
    "Identity",
    "Lanczos",
    "LiSSA",
    "Normal",
    "Objective",
    "Proximal",
    "Query",
    "Scores",
    "Solution",
    "Stage",
    "Trace",
    "__version__",
    "trace",
]
