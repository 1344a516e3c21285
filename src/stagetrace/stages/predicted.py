"""Which tokens of a batch are predicted, where they stand in it and in their examples, and a number for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from stagetrace.objectives.objective import by_token
from stagetrace.objectives.tokens import IGNORED
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk

__all__ = ["Places", "Tokens", "padding_of", "places_of"]


class Places(NamedTuple):
    """The predicted tokens of a batch: rows and columns in it, their positions in the examples, and their ids."""

    rows: Tensor
    columns: Tensor
    positions: Tensor
    tokens: Tensor


@final
@dataclass(frozen=True)
class Tokens:
    """Tokens with numbers for each, such as scores: index, position, token int64 `[m]`, values `[k, m]`; on the CPU."""

    index: Tensor
    position: Tensor
    token: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def at(self, rows: Tensor) -> "Tokens":
        """Some of them, by a mask or by places."""
        return Tokens(self.index[rows], self.position[rows], self.token[rows], self.values[:, rows])

    @staticmethod
    def joined(some: list["Tokens"], columns: int) -> "Tokens":
        """All of them, ordered by example and position."""
        none = torch.zeros(0, dtype=torch.long)
        some = some or [Tokens(none, none, none, torch.zeros(columns, 0))]
        index, position, token = (
            torch.cat([getattr(t, name) for t in some]) for name in ("index", "position", "token")
        )
        values = torch.cat([t.values for t in some], dim=1)
        by_position = position.argsort(stable=True)
        order = by_position[index[by_position].argsort(stable=True)]
        return Tokens(index, position, token, values).at(order)


def places_of(risk: Risk, batch: Batch) -> Places:
    """The predicted tokens of a batch, on the CPU. A position does not count padding on the left."""
    labels = by_token(risk.objective).predicted(batch.content).cpu().long()
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    return Places(rows, columns, columns - padding_of(batch.content, labels)[rows], labels[rows, columns])


def padding_of(content: Any, labels: Tensor) -> Tensor:
    """How many places on the left of each example are padding, `[batch]`, by the attention mask where there is one.

    labels: of the batch, on the CPU. A mask of other tokens (an encoder's) would say it of places with labels.
    """
    mask = content.get("attention_mask") if isinstance(content, Mapping) else None
    if not isinstance(mask, Tensor) or mask.shape != labels.shape:
        return torch.zeros(len(labels), dtype=torch.long)
    kept = (mask != 0).cpu().long()
    first, labelled = kept.argmax(dim=1), labels != IGNORED
    theirs = kept.any(dim=1) & ~(labelled & (kept.cumsum(dim=1) == 0)).any(dim=1)
    return torch.where(theirs, first, 0)
