"""The processes of this run, as solvers see them: functions, and no process group."""

from stagetrace.curvature.shares import ALONE, Shares
from stagetrace.parallel import world

__all__ = ["among_processes"]


def among_processes() -> Shares:
    """How the processes of the run share what a solver holds."""
    here = world()
    if here.size == 1:
        return ALONE
    return Shares(here.size, here.rank, here.piece, here.whole, here.sum, here.joined, here.each)
