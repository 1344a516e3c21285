"""Encoders with a decoder: translation, summaries, and every other text that is written from another one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from stagetrace.errors import BatchError
from stagetrace.objectives.batches import in_short, target_tensor
from stagetrace.objectives.forward import call
from stagetrace.objectives.tokens import IGNORED, MaskedToken, TokenReduction

__all__ = ["Seq2Seq"]

DECODER = ("decoder_input_ids", "decoder_inputs_embeds")


@final
@dataclass(frozen=True)
class Seq2Seq:
    """Cross-entropy of each token of a target text, by a model with an encoder and a decoder (T5, BART, ...).

        loss_i = -mean_t log p(target_t | targets before t, source)

    A dict batch: `input_ids` and `attention_mask` of the source (or `pixel_values`, `input_features`, ...), `labels`
    `[batch, length]` of the target, of which -100 are ignored. The decoder's inputs are the labels shifted by one,
    made by the model's `prepare_decoder_input_ids_from_labels`, or where it has none (Whisper) behind
    `config.decoder_start_token_id`, as in training, unless the batch has `decoder_input_ids`. Unit: nats, per
    target token with `reduction="mean"`; a target without tokens has loss 0. It equals the loss that transformers'
    models return for the example alone.

    Raises:
        DescriptionError: another reduction.
        BatchError: (from a batch) no dict with labels; labels out of the vocabulary, or no whole numbers; a model that
            cannot make the decoder's inputs.

    Example:
        >>> import torch
        >>> labels = {"labels": torch.tensor([[4, 2, -100]])}
        >>> Seq2Seq("sum").losses(torch.zeros(1, 3, 7), labels).exp().round()
        tensor([49.])
    """

    reduction: TokenReduction = "mean"

    def __post_init__(self) -> None:
        _ = self._tokens

    @property
    def _tokens(self) -> MaskedToken:
        return MaskedToken(self.reduction)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, Mapping):
            raise BatchError(
                f"Seq2Seq needs a dict with input_ids and labels, got {in_short(batch)}; give a collate= that makes one"
            )
        if any(name in batch for name in DECODER):
            return call(model, batch)
        return call(model, {**batch, "decoder_input_ids": _shifted(model, target_tensor(batch, "Seq2Seq"))})

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return self._tokens.losses(outputs, batch)

    def token_losses(self, outputs: Tensor, batch: Any) -> Tensor:
        """Each target token's term of its example's loss, `[batch, length]`."""
        return self._tokens.token_losses(outputs, batch)

    def predicted(self, batch: Any) -> Tensor:
        """The target's tokens, -100 where nothing is predicted."""
        return self._tokens.predicted(batch)

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse labels outside the vocabulary; `shape` is that of an example's outputs, `[length, classes]`."""
        self._tokens.check(batch, shape)

    def labelled(self, batch: Any) -> int:
        """How many tokens of the batch are predicted."""
        return int((target_tensor(batch, "Seq2Seq") != IGNORED).sum())


def _shifted(model: nn.Module, labels: Tensor) -> Tensor:
    """The decoder's inputs `[batch, length]` for these labels, as the model makes them in training."""
    make: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if callable(make):
        return cast("Callable[..., Tensor]", make)(labels=labels)
    config: Any = getattr(model, "config", None)
    start, pad = (getattr(config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    if not isinstance(start, int) or not isinstance(pad, int):
        raise BatchError(
            f"{type(model).__name__} has no prepare_decoder_input_ids_from_labels and no token in its config that a "
            "decoder starts with, and the batch no 'decoder_input_ids', which training made from the labels; add them, "
            "in the data set or by collate="
        )
    first = labels.new_full((len(labels), 1), start)
    shifted = torch.cat([first, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, pad)
