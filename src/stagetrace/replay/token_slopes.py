"""The derivatives of a recorded training in the weights of single tokens, added up over its steps."""

from typing import final

import torch
from torch import Tensor

from stagetrace.stages.predicted import Places, Tokens

__all__ = ["TokenSums"]

ROOM = 2**20
"""Tokens of steps that are held before they are added up."""


@final
class TokenSums:
    """Adds up what the batches that an example was in say of its tokens.

    columns: derivatives of each token, one for each query.
    """

    def __init__(self, columns: int) -> None:
        self._held, self._count = list[tuple[Tensor, Tensor]](), 0
        self._columns = columns

    def add(self, ids: Tensor, places: Places, values: Tensor) -> None:
        """ids: the batch's examples `[batch]`. values: `[batch, length, k]`, of which those at the places count."""
        keys = torch.stack([ids[places.rows], places.positions, places.tokens], dim=1)
        self._held.append((keys, values[places.rows, places.columns]))
        self._count += len(keys)
        if self._count > ROOM:
            self._add_up()

    def result(self) -> Tokens:
        """dq/d(the weight of a token's loss), ordered by example and position.

        A position has several tokens where an example was read anew each time.
        """
        if not self._held:
            return Tokens.joined([], self._columns)
        self._add_up()
        keys, values = self._held[0]
        index, position, token = keys.unbind(1)
        return Tokens(index, position, token, values.mT)

    def _add_up(self) -> None:
        """One row for each example, position and token, in order."""
        keys, places = torch.cat([k for k, _ in self._held]).unique(dim=0, return_inverse=True)
        sums = torch.zeros(len(keys), self._columns, dtype=torch.float64)
        sums.index_add_(0, places, torch.cat([values for _, values in self._held]))
        self._held, self._count = [(keys, sums)], 0
