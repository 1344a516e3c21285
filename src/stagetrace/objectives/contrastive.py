"""Contrastive losses: each row is to be told from the others of its group, so a fixed group of rows is one example."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import BatchError, refuse
from stagetrace.objectives.batches import in_short
from stagetrace.objectives.forward import output_of

__all__ = ["Contrastive"]

Embed = Callable[[nn.Module, Any], Tensor]
"""`embed(model, rows) -> [rows, d]`."""


@final
@dataclass(frozen=True)
class Contrastive:
    """InfoNCE over the pairs of a group: each anchor is to be nearer to its own positive than to those of the others.

        loss_i = -mean_a log softmax_b(cos(anchor_a, positive_b) / temperature)[a],    a, b in the group i

    As in the loss of CLIP (`symmetric=True`, the mean of both directions) and in `MultipleNegativesRankingLoss` of
    sentence-transformers, whose scale is 1 / temperature. **An example is a group of rows**, since a row's loss depends
    on the rest of its group: `Grouped` makes groups that do not change. Removing an example removes a whole group.

    A batch is `(anchors, positives)`, each a tensor `[batch, group, ...]` or a dict of such tensors. There may be more
    positives than anchors: the first are the anchors' own, and the others (hard negatives) are nobody's. Unit: nats.

    Args:
        temperature: above 0.
        symmetric: whether each positive is also to find its anchor; then there are as many of both.
        embed: `embed(model, rows) -> [rows, d]`, where the model's output is not that already: which of its outputs is
            taken, how tokens are pooled. `rows` is what the batch holds, its first two axes made one.

    Raises:
        DescriptionError: settings of another kind.
        BatchError: (from a batch) another form, or groups of one row.

    Example:
        >>> import torch
        >>> Contrastive().losses(torch.zeros(1, 3, 3), None).exp().round()  # three pairs that are all alike
        tensor([3.])
    """

    temperature: float = 0.05
    symmetric: bool = False
    embed: Embed | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, (int, float)) and 0 < self.temperature < math.inf):
            refuse(f"Contrastive(temperature=...) must be a number above 0, got {self.temperature!r}")
        if not isinstance(self.symmetric, bool):
            refuse(f"Contrastive(symmetric=...) must be True or False, got {self.symmetric!r}")
        if self.embed is not None and not callable(self.embed):
            refuse(f"Contrastive(embed=...) must be a function embed(model, rows), got {self.embed!r}")

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Logits `[batch, anchors, positives]`: cosines over the temperature, in which the loss is convex."""
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise BatchError(
                f"Contrastive needs (anchors, positives), each [batch, group, ...], got {in_short(batch)}; one example "
                "is a group of rows: Grouped(pairs, size) makes them"
            )
        anchors, positives = (self._embedded(model, part) for part in batch)
        more = positives.shape[1] - anchors.shape[1]
        if more < 0 or (more and self.symmetric) or positives.shape[2] != anchors.shape[2]:
            raise BatchError(
                f"Contrastive got {anchors.shape[1]} anchors and {positives.shape[1]} positives a group; there must be "
                f"{'as many' if self.symmetric else 'at least as many'} positives"
            )
        return F.normalize(anchors, dim=-1) @ F.normalize(positives, dim=-1).mT / self.temperature

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        del batch
        if outputs.ndim != 3 or outputs.shape[1] > outputs.shape[2]:
            raise BatchError(f"Contrastive needs logits [batch, anchors, positives], got {list(outputs.shape)}")
        loss = -outputs.log_softmax(2).diagonal(dim1=1, dim2=2).mean(1)
        return (loss - outputs.log_softmax(1).diagonal(dim1=1, dim2=2).mean(1)) / 2 if self.symmetric else loss

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse groups of one row, from which nothing is to be told."""
        del shape
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and _rows(batch[1])[1] < 2:
            raise BatchError(
                "a group of one pair has loss 0, since there is nothing to tell it from; an example is a group of two "
                "or more, as trained: Grouped(pairs, size)"
            )

    def _embedded(self, model: nn.Module, part: Any) -> Tensor:
        """`[batch, group, d]`."""
        groups, rows = _rows(part)
        flat = {name: t.flatten(0, 1) for name, t in part.items()} if isinstance(part, Mapping) else part.flatten(0, 1)
        if self.embed is not None:
            found = self.embed(model, flat)
        else:
            found = output_of(model, flat) if isinstance(flat, Mapping) else model(flat)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != groups * rows:
            raise BatchError(
                f"Contrastive needs an embedding for each of {groups * rows} rows, [rows, d], got {in_short(found)}; "
                "give embed=, a function of the model and the rows that returns them"
            )
        return found.reshape(groups, rows, -1)


def _rows(part: Any) -> tuple[int, int]:
    """How many groups a part of a batch holds, and of how many rows.

    Raises:
        BatchError: its tensors are not `[batch, group, ...]`.
    """
    tensors = list(part.values()) if isinstance(part, Mapping) else [part]
    shapes = {tuple(t.shape[:2]) if isinstance(t, Tensor) and t.ndim >= 3 else None for t in tensors}
    (shape,) = shapes if len(shapes) == 1 else (None,)
    if shape is None or len(shape) != 2:
        raise BatchError(
            f"Contrastive needs tensors of groups of rows, each [batch, group, ...], got {in_short(part)}; one example "
            "is a group of rows: Grouped(pairs, size) makes them"
        )
    return shape
