"""The solver that a stage is given where nobody chose one, if it is not the default of all."""

from collections.abc import Mapping

from stagetrace.checks.finding import Finding, Level
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.ekfac import EKFAC, stays_diagonal
from stagetrace.replay.stopped import stopped_early
from stagetrace.solvers.base import Solver
from stagetrace.solvers.direct import Direct
from stagetrace.solvers.early_stopping import EarlyStopping
from stagetrace.solvers.filters import Shift
from stagetrace.solvers.lanczos import Lanczos
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain

__all__ = ["chosen", "closed_form", "usual_solvers"]


def usual_solvers(chain: Chain, curvatures: Mapping[str, Curvature] | None = None) -> dict[str, Solver]:
    """What training that stopped early left, and what a curvature that knows its eigenvectors is solved by.

    Raises:
        DescriptionError: what is said to be left of a training is not of that stage.
    """
    found = _early(chain)
    for name, curvature in (curvatures or {}).items():
        if isinstance(curvature, EKFAC) and name not in found and chain[name].recording is None:
            found[name] = closed_form(chain[name])
    return found


def closed_form(bound: BoundStage) -> Solver:
    """The solver of EK-FAC: in its eigenbasis, where the stage's penalties are diagonal in it, else by products."""
    return Direct("auto", Shift) if stays_diagonal(bound) else Lanczos("auto", filter=Shift)


def _early(chain: Chain) -> dict[str, Solver]:
    """`EarlyStopping` for stages whose optimiser's state is at hand, before stages that are differentiated exactly.

    Where the later stages are exact, what is left to be said of an unrecorded stage is how far its own training got,
    and `phi_t` says that without a damping to choose. Several stretches came nearer to the exact derivative than a
    damped inverse did; a single one did not always (`docs/experiments/smoothness.md`). Before a stage that is idealised
    itself the default of all stays: which of the two is better there was not measured. So it does for a stage that
    trained parameters of another one further.

    Raises:
        DescriptionError: what is said to be left of a training is not of that stage.
    """
    found = dict[str, Solver]()
    for place, bound in enumerate(chain):
        later = chain.bound_stages[place + 1 :]
        if bound.recording is not None or bound.stage.training is None or bound.anchored_to or not later:
            continue
        if all(each.recording is not None for each in later):
            found[bound.name] = stopped_early(bound, bound.stage.training)
    return found


def chosen(solvers: Mapping[str, Solver], usual: Mapping[str, Solver]) -> list[Finding]:
    """What was chosen for which stage, and why; solvers: of each stage, usual: by `usual_solvers`."""
    found = list[Finding]()
    for name, solver in solvers.items():
        wanted = usual.get(name)
        if isinstance(solver, EarlyStopping) and isinstance(wanted, EarlyStopping) and solver.time == wanted.time:
            found.append(Finding(name, "solver", Level.NOTE, _words(name, solver)))
    return found


def _words(name: str, solver: EarlyStopping) -> str:
    segments = f" in {len(solver.earlier) + 1} segments" if solver.earlier else ""
    return (
        f"{solver} was chosen, what training that stopped early makes of a gradient{segments}: the optimiser's state "
        "is at hand, and every later stage is differentiated through its recorded steps; to assume a minimum instead "
        f"give solver={{'{name}': Lanczos()}}"
    )
