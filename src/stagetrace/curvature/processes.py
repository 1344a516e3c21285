"""The processes of this run, as solvers see them: functions, and no process group."""

from dataclasses import replace
from math import prod

from stagetrace.curvature.shares import ALONE, Entries, Shares
from stagetrace.parallel import world
from stagetrace.stages.risk import Risk

__all__ = ["among_processes", "sharing"]


def among_processes() -> Shares:
    """How the processes of the run share what a solver holds."""
    here = world()
    if here.size == 1:
        return ALONE
    return Shares(here.size, here.rank, here.piece, here.whole, here.sum, here.joined, _mine)


def _mine(rows: int) -> slice:
    """Which of so many rows this process works on."""
    mine = world().shard(range(rows))
    return slice(mine[0], mine[-1] + 1) if mine else slice(0, 0)


def sharing(risk: Risk) -> Shares:
    """The same for vectors of a stage whose parameters lie in shards: each process has the entries of its rows."""
    shapes, here, total, most = risk.evaluation.shapes, list[slice](), 0, 0
    assert shapes is not None
    for name in risk.trained.names:
        rows, width = (shapes[name][0], prod(shapes[name][1:])) if shapes[name] else (1, 1)
        mine = world().piece(rows)
        here.append(slice(total + mine.start * width, total + mine.stop * width))
        total, most = total + rows * width, most + -(-rows // world().size) * width
    shared = Shares(world().size, world().rank, summed=world().sum)
    return replace(shared, entries=Entries(total, most, tuple(here)))
