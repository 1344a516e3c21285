"""One prediction per token: causal and masked language modelling.

A sentence's loss is a sum or mean over its own labelled tokens, so it does not depend on what else is in the batch,
nor on how much padding the batch added.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import DataError, refuse
from stagetrace.objectives.batches import call, targets_of

IGNORED = -100
"""The label that marks a token as not predicted, as in PyTorch and Hugging Face."""

TokenReduction = Literal["mean", "sum"]


def _check_reduction(objective: str, reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        refuse(f"{objective}(reduction=...) over a sentence's tokens must be 'mean' or 'sum', got {reduction!r}")


def _check_token_shapes(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise DataError(
            "a token loss needs logits [batch, length, classes] and labels [batch, length], "
            f"got {list(logits.shape)} and {list(labels.shape)}"
        )


def _token_losses(logits: Tensor, labels: Tensor, reduction: TokenReduction) -> Tensor:
    """Cross-entropy over labelled tokens: logits `[batch, length, classes]`, labels `[batch, length]` -> `[batch]`."""
    _check_token_shapes(logits, labels)
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    total = losses.sum(dim=1)
    if reduction == "sum":
        return total
    return total / (labels != IGNORED).sum(dim=1).clamp_min(1)


@final
@dataclass(frozen=True)
class MaskedToken:
    """Cross-entropy over the labelled tokens of each sentence; labels of -100 are ignored.

    For masked language modelling and for token classification. Unit: nats, per labelled token with `reduction="mean"`;
    a sentence without labelled tokens has loss 0.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[0, -100], [1, 1]])
        >>> MaskedToken().losses(torch.zeros(2, 2, 4), {"labels": labels}).exp().round()
        tensor([4., 4.])
    """

    reduction: TokenReduction = "mean"

    def __post_init__(self) -> None:
        _check_reduction("MaskedToken", self.reduction)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return _token_losses(outputs, targets_of(batch), self.reduction)


@final
@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of each next token of a sentence, by a causal language model.

    A dict batch (`input_ids`, `attention_mask`, optionally `labels`, -100 ignored) or a tensor of tokens
    `[batch, length]` is shifted here; an `(inputs, targets)` tuple is taken as shifted already. Without `labels` every
    token that the attention mask keeps is predicted, from the second of its sentence on. Unit: nats, per predicted
    token with `reduction="mean"`.

    Example:
        >>> import torch
        >>> tokens = {"input_ids": torch.tensor([[3, 1, 2]]), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> NextToken(reduction="sum").losses(torch.zeros(1, 3, 7), tokens).exp().round()
        tensor([7.])
    """

    reduction: TokenReduction = "mean"

    def __post_init__(self) -> None:
        _check_reduction("NextToken", self.reduction)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return call(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        if isinstance(batch, (tuple, list)):
            return _token_losses(outputs, batch[-1], self.reduction)
        labels = _labels(batch)
        _check_token_shapes(outputs, labels)
        return _token_losses(outputs[:, :-1], labels[:, 1:], self.reduction)


def _labels(batch: Any) -> Tensor:
    """The unshifted labels of a batch: given ones, or its tokens without padding and what follows it."""
    if isinstance(batch, Tensor):
        return batch
    if not isinstance(batch, Mapping) or not ("labels" in batch or "input_ids" in batch):
        raise DataError(
            "NextToken needs a dict with input_ids (and labels), an (inputs, targets) tuple or a tensor of tokens, "
            f"got {type(batch).__name__}"
        )
    if "labels" in batch:
        return batch["labels"]
    tokens: Tensor = batch["input_ids"]
    if "attention_mask" not in batch:
        return tokens
    padding = batch["attention_mask"] == 0
    after_padding = F.pad(padding[:, :-1], (1, 0))  # the first token of a sentence padded on the left follows nothing
    return tokens.masked_fill(padding | after_padding, IGNORED)
