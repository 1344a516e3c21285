"""How processes share what a solver holds: by default this one has everything for itself.

Vectors of a solve are whole in every process, and the same in all. What is stored of them in numbers, the Krylov basis,
lies in pieces: each process keeps the same entries of every vector, `piece`. An inner product is then a sum over
processes, and a combination of stored vectors is put together from all. Rows of a factor lie with the process whose
examples they belong to.

An operator says how its own processes share (`LinearOperator.shares`): whoever multiplies with it is in step with the
others anyway, since each product is a sum over all.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from torch import Tensor

__all__ = ["ALONE", "Shares"]


def _all_of(total: int) -> slice:
    return slice(0, total)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _as_it_is(piece: Tensor, total: int) -> Tensor:
    del total
    return piece


def _alone(rows: Tensor) -> Iterable[Tensor]:
    return (rows,)


@final
@dataclass(frozen=True)
class Shares:
    """What the processes do together; all of them call the same in the same order, and get the same bits.

    processes: their number; rank: which of them this one is.
    piece: of vectors with so many entries, those that this process keeps.
    whole: every process's piece `[n, ...]` of vectors with so many entries, put together.
    summed: the sum of every process's tensor, which may be in its place.
    joined: every process's rows, whatever their number, below one another.
    each: the rows of one process after another.
    """

    processes: int = 1
    rank: int = 0
    piece: Callable[[int], slice] = _all_of
    whole: Callable[[Tensor, int], Tensor] = _as_it_is
    summed: Callable[[Tensor], Tensor] = _itself
    joined: Callable[[Tensor], Tensor] = _itself
    each: Callable[[Tensor], Iterable[Tensor]] = _alone

    def largest_piece(self, total: int) -> int:
        """How many of so many entries the process with most of them keeps.

        Example:
            >>> Shares(processes=3).largest_piece(10)
            4
        """
        return -(-total // self.processes)


ALONE = Shares()
"""One process that has everything for itself."""
