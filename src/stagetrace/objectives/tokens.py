"""One prediction per token: causal and masked language modelling.

A sentence's loss is a sum or mean over its own labelled tokens, so it does not depend on what else is in the batch,
nor on how much padding the batch added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import BatchError, refuse
from stagetrace.objectives.batches import LABELS, as_labels, check_outputs, in_short, target_tensor
from stagetrace.objectives.forward import call
from stagetrace.objectives.labels import IGNORED as IGNORED
from stagetrace.objectives.labels import check_indices, check_whole, first_with

TokenReduction = Literal["mean", "sum"]

TELLING = 2
"""Labelled tokens that must indicate shifted labels before a batch is refused."""


def _check_reduction(objective: str, reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        refuse(f"{objective}(reduction=...) over a sentence's tokens must be 'mean' or 'sum', got {reduction!r}")


def _check_token_shapes(logits: Tensor, labels: Tensor, objective: str) -> None:
    check_outputs(logits, labels, objective)
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise BatchError(
            "a token loss needs logits [batch, length, classes] and labels [batch, length], "
            f"got {list(logits.shape)} and {list(labels.shape)}; give a label for every token, {IGNORED} where nothing "
            "is predicted, or use Classification() for one label a sentence"
        )
    check_whole(labels, "token labels")


def _token_losses(logits: Tensor, labels: Tensor, reduction: TokenReduction, *, each: bool = False) -> Tensor:
    """Cross-entropy over labelled tokens: logits `[batch, length, classes]`, labels `[batch, length]` -> `[batch]`.

    each: as terms of that sum, `[batch, length]`.
    """
    losses = cross_entropies(logits, labels)
    found = losses if each else losses.sum(dim=1)
    if reduction == "sum":
        return found
    counts = (labels != IGNORED).sum(dim=1, keepdim=each)
    return found / counts.clamp_min(1)


def cross_entropies(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Logits `[batch, length, classes]`, labels `[batch, length]` -> `[batch, length]`, 0 at labels of -100.

    All tokens as one batch: classes that are not the last axis of the logits would cost twice as much.
    """
    flat = logits.flatten(0, 1), labels.long().flatten()
    each = F.cross_entropy(*flat, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing)
    return each.view(labels.shape)


def following(labels: Tensor) -> Tensor:
    """At each position the label of the next one, and -100 at the last: logits need not be cut, which copies them."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _check_vocabulary(labels: Tensor, shape: Sequence[int]) -> None:
    check_whole(labels, "token labels")
    if labels.ndim == 2 and len(shape) == 2:
        check_indices(labels, shape[-1], "a token's label", ignored=True)


@final
@dataclass(frozen=True)
class MaskedToken:
    """Cross-entropy over the labelled tokens of each sentence; labels of -100 are ignored.

    For masked language modelling and for token classification. Unit: nats, per labelled token with `reduction="mean"`;
    a sentence without labelled tokens has loss 0.

    Raises:
        DescriptionError: another reduction.
        BatchError: (from a batch) labels of another shape than the tokens, out of the vocabulary, or no whole numbers.

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
        labels = target_tensor(batch, "MaskedToken")
        _check_token_shapes(outputs, labels, "MaskedToken")
        return _token_losses(outputs, labels, self.reduction)

    def token_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        """Each labelled token's term of its sentence's loss, `[batch, length]`."""
        labels = target_tensor(batch, "MaskedToken")
        _check_token_shapes(outputs, labels, "MaskedToken")
        return _token_losses(outputs, labels, self.reduction, each=True)

    def predicted(self, batch: Any) -> Tensor:
        """The labels, -100 where nothing is predicted."""
        return target_tensor(batch, "MaskedToken")

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse labels outside the vocabulary; `shape` is that of an example's outputs, `[length, classes]`."""
        _check_vocabulary(target_tensor(batch, "MaskedToken"), shape)

    def labelled(self, batch: Any) -> int:
        """How many tokens of the batch are predicted."""
        return int(self.counted(batch).sum())

    def counted(self, batch: Any) -> Tensor:
        """At which positions `[batch, length]` of the outputs something is predicted."""
        return target_tensor(batch, "MaskedToken") != IGNORED


@final
@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of each next token of a sentence, by a causal language model.

    A dict batch (`input_ids`, `attention_mask`, optionally `labels`, -100 ignored) or a tensor of tokens
    `[batch, length]` is shifted here; an `(inputs, targets)` tuple is taken as shifted already. Without `labels` every
    token that the attention mask keeps is predicted, from the second of its sentence on. Unit: nats, per predicted
    token with `reduction="mean"`; a sentence without a predicted token has loss 0.

    Raises:
        DescriptionError: another reduction.
        BatchError: (from a batch) labels of another shape than the tokens, out of the vocabulary, or no whole numbers;
            labels that would be shifted twice, or not at all.

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
        return call(model, _tokens_alone(batch))

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        labels, shifted = _labels(batch)
        _check_token_shapes(outputs, labels, "NextToken")
        return _token_losses(outputs, labels if shifted else following(labels), self.reduction)

    def token_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        """Each predicted token's term of its sentence's loss, `[batch, length]`, at the token's own position.

        Of an `(inputs, targets)` tuple the position is that in the targets.
        """
        labels, shifted = _labels(batch)
        _check_token_shapes(outputs, labels, "NextToken")
        if shifted:
            return _token_losses(outputs, labels, self.reduction, each=True)
        return F.pad(_token_losses(outputs, following(labels), self.reduction, each=True)[:, :-1], (1, 0))

    def predicted(self, batch: Any) -> Tensor:
        """The tokens that are predicted, at their own positions; -100 elsewhere."""
        labels, shifted = _labels(batch)
        return labels if shifted else F.pad(labels[:, 1:], (1, 0), value=IGNORED)

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse labels outside the vocabulary, and labels whose shift is not this loss's."""
        labels, shifted = _labels(batch)
        _check_vocabulary(labels, shape)
        tokens = batch.get("input_ids") if isinstance(batch, Mapping) else batch[0] if shifted else None
        if isinstance(tokens, Tensor) and not tokens.is_floating_point() and tokens.shape == labels.shape:
            _check_shift(tokens, labels, shifted=shifted)

    def labelled(self, batch: Any) -> int:
        """How many tokens of the batch are predicted."""
        return int(self.counted(batch).sum())

    def counted(self, batch: Any) -> Tensor:
        """At which positions `[batch, length]` of the outputs something is predicted: the token after it."""
        labels, shifted = _labels(batch)
        return (labels if shifted else following(labels)) != IGNORED


def _tokens_alone(batch: Any) -> Any:
    """The tensor of tokens in a tuple of one, as a data set of one tensor gives it; any other batch as it is."""
    return batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 1 else batch


def _labels(batch: Any) -> tuple[Tensor, bool]:
    """The labels of a batch, and whether they are shifted: given ones, or its tokens without padding."""
    batch = _tokens_alone(batch)
    if isinstance(batch, Tensor):
        return as_labels(batch, "NextToken"), False
    if isinstance(batch, (tuple, list)):
        return target_tensor(batch, "NextToken"), True
    if not isinstance(batch, Mapping) or not ("labels" in batch or "input_ids" in batch):
        raise BatchError(
            "NextToken needs a dict with input_ids (and labels), an (inputs, targets) tuple or a tensor of tokens, "
            f"got {in_short(batch)}"
        )
    if any(name in batch for name in LABELS):
        return target_tensor(batch, "NextToken"), False
    tokens = as_labels(batch["input_ids"], "NextToken")
    if "attention_mask" not in batch:
        return tokens, False
    padding = batch["attention_mask"] == 0
    after_padding = F.pad(padding[:, :-1], (1, 0))  # the first token of a sentence padded on the left follows nothing
    return tokens.masked_fill(padding | after_padding, IGNORED), False


def _check_shift(tokens: Tensor, labels: Tensor, *, shifted: bool) -> None:
    """Refuse labels that are the next tokens where this loss shifts, or the tokens themselves where it does not.

    Where a few labels of one kind are found and none of the other, they are not there by chance.
    """
    counted = labels != IGNORED
    same, next_one = labels == tokens, labels[:, :-1] == tokens[:, 1:]
    inside = counted[:, :-1]
    as_next = next_one[inside].all() and bool((inside & ~same[:, :-1]).sum() >= TELLING)
    as_same = same[counted].all() and bool((inside & ~next_one).sum() >= TELLING)
    if not shifted and as_next:
        raise BatchError(
            "the labels are the next tokens already, and NextToken would shift them a second time; give labels equal "
            "to input_ids, or an (inputs, targets) tuple",
            first_with(inside & ~same[:, :-1]),
        )
    if shifted and as_same:
        raise BatchError(
            "the targets are the input tokens themselves, and NextToken does not shift the targets of a tuple; give "
            "(tokens[:-1], tokens[1:]) for each example, or the tokens alone",
            first_with(inside & ~next_one),
        )
