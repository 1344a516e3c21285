"""How processes share what a solver holds: by default this one has everything for itself.

Vectors of a solve are whole in every process, and the same in all. What is stored of them in numbers, the Krylov basis,
lies in pieces: each process keeps the same entries of every vector, `piece`. An inner product is then a sum over
processes, and a combination of stored vectors is put together from all. The work on a factor's rows, which all hold, is
shared out.

Where a model's parameters lie in shards, so do all vectors of a solve (`entries`), and every sum over entries is one
over processes (`solvers/vectors.py`). Basis vectors are then stored as they are.

An operator says how its own processes share (`LinearOperator.shares`): whoever multiplies with it is in step with the
others anyway, since each product is a sum over all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["ALONE", "Entries", "Shares"]


def _all_of(total: int) -> slice:
    return slice(0, total)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _as_it_is(piece: Tensor, total: int) -> Tensor:
    del total
    return piece


@final
@dataclass(frozen=True)
class Entries:
    """Which entries of whole vectors a process has, where it has no others.

    total: of a whole vector; most: of the process that has most; here: this one's, in their order.
    """

    total: int
    most: int
    here: tuple[slice, ...]


@final
@dataclass(frozen=True)
class Shares:
    """What the processes do together; all of them call the same in the same order, and get the same bits.

    processes: their number; rank: which of them this one is.
    piece: of vectors with so many entries, those that this process keeps.
    whole: every process's piece `[n, ...]` of vectors with so many entries, put together.
    summed: the sum of every process's tensor, which may be in its place.
    joined: every process's rows, whatever their number, below one another.
    mine: of so many rows that all processes hold, those that this one works on.
    entries: where all vectors lie in pieces; None where they are whole in every process.
    """

    processes: int = 1
    rank: int = 0
    piece: Callable[[int], slice] = _all_of
    whole: Callable[[Tensor, int], Tensor] = _as_it_is
    summed: Callable[[Tensor], Tensor] = _itself
    joined: Callable[[Tensor], Tensor] = _itself
    mine: Callable[[int], slice] = _all_of
    entries: Entries | None = None

    def largest_piece(self, total: int) -> int:
        """How many of a vector's so many entries the process that stores most of them stores.

        Example:
            >>> Shares(processes=3).largest_piece(10)
            4
        """
        return -(-total // self.processes) if self.entries is None else self.entries.most

    def dimension(self, held: int) -> int:
        """The number of entries of a whole vector, of which a process holds so many."""
        return held if self.entries is None else self.entries.total

    def most_held(self, held: int) -> int:
        """How many entries the process that holds most holds of a vector, where this one holds so many."""
        return held if self.entries is None else self.entries.most

    def taken(self, whole: Tensor) -> Tensor:
        """What this process holds of a whole vector `[dim]`."""
        return whole if self.entries is None else torch.cat([whole[here] for here in self.entries.here])


ALONE = Shares()
"""One process that has everything for itself."""
