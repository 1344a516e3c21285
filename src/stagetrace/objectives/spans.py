"""An answer that is a span of the text: where it begins, and where it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import BatchError
from stagetrace.objectives.batches import as_labels, check_outputs, in_short
from stagetrace.objectives.forward import output_of
from stagetrace.objectives.labels import check_whole, first_with

__all__ = ["OWN_LENGTH", "SpanAnswer"]

POSITIONS = ("start_positions", "end_positions")

OWN_LENGTH = "own_length"
"""The key of how many positions each example has of its own: nothing begins or ends in what a batch pads it with."""


@final
@dataclass(frozen=True)
class SpanAnswer:
    """The mean of two cross-entropies over a text's positions: of the answer's first token, and of its last.

        loss_i = -(log p_start(start_i) + log p_end(end_i)) / 2

    A dict batch with `start_positions` and `end_positions` `[batch]`; the model returns `start_logits` and `end_logits`
    `[batch, length]`, or a tensor `[batch, length, 2]`. Unit: nats. It equals the loss that transformers' models for
    question answering return for the example alone.

    A position at or beyond the length is ignored (the answer is not in this piece of the text), and its cross-entropy
    is 0; transformers divides by the examples of a step that are not ignored, which no example's own loss can. All
    positions of an example compete, its own padding included, as in training; what a batch adds to pad an example does
    not, where the batch says by `own_length` `[batch]` how many positions each has (`hf.stage` does).

    Raises:
        BatchError: (from a batch) no positions, negative ones, or such that are no whole numbers `[batch]`; outputs of
            another shape.

    Example:
        >>> import torch
        >>> batch = {"start_positions": torch.tensor([0]), "end_positions": torch.tensor([3])}
        >>> SpanAnswer().losses(torch.zeros(1, 2, 4), batch).exp().round()
        tensor([4.])
    """

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Logits `[batch, 2, length]`: of the start, and of the end."""
        positions(batch)
        inputs = {key: value for key, value in batch.items() if key not in (*POSITIONS, OWN_LENGTH)}
        found = output_of(model, inputs)
        pair = [getattr(found, name, None) for name in ("start_logits", "end_logits")]
        if isinstance(pair[0], Tensor) and isinstance(pair[1], Tensor):
            logits = torch.stack([pair[0], pair[1]], dim=1)
        elif isinstance(found, Tensor) and found.ndim == 3 and found.shape[2] == 2:
            logits = found.mT
        else:
            raise BatchError(
                "SpanAnswer needs start_logits and end_logits [batch, length], or a tensor [batch, length, 2], the "
                f"model gave {in_short(found)}"
            )
        if OWN_LENGTH not in batch:
            return logits
        outside = torch.arange(logits.shape[2], device=logits.device) >= batch[OWN_LENGTH].reshape(-1, 1)
        return logits.masked_fill(outside.unsqueeze(1), torch.finfo(logits.dtype).min)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        labels = positions(batch)
        check_outputs(outputs, labels, "SpanAnswer")
        if outputs.ndim != 3 or outputs.shape[:2] != labels.shape:
            raise BatchError(f"SpanAnswer needs outputs [batch, 2, length], got {list(outputs.shape)}")
        length = outputs.shape[2]
        own = batch[OWN_LENGTH].reshape(-1, 1) if OWN_LENGTH in batch else length
        counted = labels.masked_fill(labels >= own, length)
        each = F.cross_entropy(outputs.transpose(1, 2), counted, reduction="none", ignore_index=length)
        return each.mean(dim=1)

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse positions that are negative."""
        del shape
        labels = positions(batch)
        position = first_with(labels < 0)
        if position is not None:
            value = int(labels[position].min())
            raise BatchError(
                f"a position of the answer is {value}; give 0 (the first token) for no answer, as in training, or a "
                "position beyond the text for one that is ignored",
                position,
            )


def positions(batch: Any) -> Tensor:
    """The positions of a batch, `[batch, 2]`.

    Raises:
        BatchError: there are none, or they are no whole numbers.
    """
    if not isinstance(batch, Mapping) or not all(name in batch for name in POSITIONS):
        raise BatchError(
            f"SpanAnswer needs a dict with {' and '.join(map(repr, POSITIONS))}, got {in_short(batch)}; add the places "
            "of the answer's first and last token, as in training"
        )
    both = [as_labels(batch[name], "SpanAnswer").reshape(-1) for name in POSITIONS]
    for each in both:
        check_whole(each, "positions of an answer")
    if len(both[0]) != len(both[1]):
        raise BatchError(f"SpanAnswer got {len(both[0])} start_positions and {len(both[1])} end_positions")
    return torch.stack(both, dim=1).long()
