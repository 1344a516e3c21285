"""stagetrace: trace what a fine-tuned model does back through every training stage to the examples that caused it.

This is the whole public contract; everything else may move. A name is imported when it is first used, so that
`stagetrace --help` does not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stagetrace.version import __version__ as __version__

if TYPE_CHECKING:
    # curvature
    from stagetrace.curvature import EKFAC as EKFAC
    from stagetrace.curvature import Auto as Auto
    from stagetrace.curvature import GaussNewton as GaussNewton
    from stagetrace.curvature import Hessian as Hessian
    from stagetrace.curvature import Identity as Identity
    from stagetrace.curvature import LinearOperator as LinearOperator

    # describe
    from stagetrace.objectives import Objective as Objective

    # record
    from stagetrace.recording import Recording as Recording
    from stagetrace.recording import Unrolled as Unrolled

    # trace
    from stagetrace.results import Scores as Scores
    from stagetrace.results import Trace as Trace

    # reweight
    from stagetrace.reweighting import reweight as reweight

    # solve
    from stagetrace.solvers import CG as CG
    from stagetrace.solvers import Direct as Direct
    from stagetrace.solvers import EarlyStopping as EarlyStopping
    from stagetrace.solvers import Lanczos as Lanczos
    from stagetrace.solvers import LiSSA as LiSSA
    from stagetrace.solvers import Normal as Normal
    from stagetrace.solvers import Shift as Shift
    from stagetrace.solvers import Solution as Solution
    from stagetrace.solvers import System as System
    from stagetrace.solvers import Tikhonov as Tikhonov
    from stagetrace.stages import Chain as Chain
    from stagetrace.stages import Frozen as Frozen
    from stagetrace.stages import Link as Link
    from stagetrace.stages import Proximal as Proximal
    from stagetrace.stages import Stage as Stage
    from stagetrace.tracing import Query as Query
    from stagetrace.tracing import trace as trace

_HOMES = {
    "curvature": ("EKFAC", "Auto", "GaussNewton", "Hessian", "Identity", "LinearOperator"),
    "objectives": ("Objective",),
    "recording": ("Recording", "Unrolled"),
    "results": ("Scores", "Trace"),
    "reweighting": ("reweight",),
    "solvers": (
        "CG",
        "Direct",
        "EarlyStopping",
        "Lanczos",
        "LiSSA",
        "Normal",
        "Shift",
        "Solution",
        "System",
        "Tikhonov",
    ),
    "stages": ("Chain", "Frozen", "Link", "Proximal", "Stage"),
    "tracing": ("Query", "trace"),
}
"""Where each public name lives."""

_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CG",
    "EKFAC",
    "Auto",
    "Chain",
    "Direct",
    "EarlyStopping",
    "Frozen",
    "GaussNewton",
    "Hessian",
    "Identity",
    "Lanczos",
    "LiSSA",
    "LinearOperator",
    "Link",
    "Normal",
    "Objective",
    "Proximal",
    "Query",
    "Recording",
    "Scores",
    "Shift",
    "Solution",
    "Stage",
    "System",
    "Tikhonov",
    "Trace",
    "Unrolled",
    "__version__",
    "reweight",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(import_module(f"stagetrace.{_HOME[name]}"), name)
    elif name in _HOMES:  # `import stagetrace` alone gave its subpackages, too
        return import_module(f"stagetrace.{name}")
    else:
        raise AttributeError(f"module 'stagetrace' has no attribute '{name}'")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES})
