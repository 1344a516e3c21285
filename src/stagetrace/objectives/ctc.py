"""Connectionist temporal classification: a text that is spoken somewhere in a sequence of frames."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagetrace.errors import BatchError, refuse
from stagetrace.objectives.batches import check_outputs, in_short, target_tensor
from stagetrace.objectives.forward import call
from stagetrace.objectives.labels import check_indices, check_whole, first_with

__all__ = ["CTC"]

NEVER = -1e30
"""The log-probability of what cannot be: finite, so that no derivative is a difference of infinities."""

MASK = "attention_mask"


@final
@dataclass(frozen=True)
class CTC:
    """The negative log-probability of a text, summed over all ways to lay its tokens along the frames.

        loss_i = -log sum over alignments a of text i  prod_t p_t(a_t)

    An alignment has one token or a blank in each frame; repeated tokens are merged and blanks taken out. The sum is
    made by the forward recursion in logarithms, whose operations have derivatives of every order (PyTorch's `ctc_loss`
    has only the first). Frames that a batch was padded with do not count. The loss is not convex in the outputs, so
    that Gauss-Newton need not be positive, and `EKFAC` refuses it: take `curvature=Hessian()`. Unit: nats; it equals
    the loss that transformers' models return for the example alone.

    A dict batch: what the model reads, its `attention_mask` where sounds were padded, and `labels` `[batch, length]`,
    -100 where there is none. The model returns logits `[batch, frames, tokens]`, and says how many frames a sound gives
    by `_get_feat_extract_output_lengths(samples)`, as transformers' models do.

    Args:
        blank: the token that stands for nothing: `config.pad_token_id`.
        reduction: "sum" over the text, or "mean": divided by its number of tokens; `config.ctc_loss_reduction`.
        zero_infinity: whether a text that is too long for its frames has the loss 0 (`config.ctc_zero_infinity`);
            otherwise the loss is infinite, and the example is refused by name.

    Raises:
        DescriptionError: an argument is none of these.
        BatchError: (from a batch) no labels, a blank among them, or such that are no tokens; outputs of another shape.

    Example:
        >>> import torch
        >>> batch = {"labels": torch.tensor([[1]])}  # in two frames of two tokens: 1 1, 0 1 or 1 0 of four
        >>> CTC(blank=0).losses(torch.zeros(1, 2, 2), batch).neg().exp()
        tensor([0.7500])

    Source: Graves et al. (2006), section 4.1.
    """

    blank: int = 0
    reduction: Literal["sum", "mean"] = "sum"
    zero_infinity: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.blank, int) or isinstance(self.blank, bool) or self.blank < 0:
            refuse(f"CTC(blank=...) must be the number of a token, got {self.blank!r}")
        if self.reduction not in ("sum", "mean"):
            refuse(f"CTC(reduction=...) must be 'sum' or 'mean', got {self.reduction!r}")

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Logits `[batch, frames, tokens]`; behind an example's own frames only the blank is left."""
        logits = call(model, batch)
        frames = _frames(model, batch)
        if frames is None or logits.ndim != 3:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        outside = torch.arange(logits.shape[1], device=logits.device) >= frames.reshape(-1, 1)
        blanks = F.one_hot(torch.tensor(self.blank), logits.shape[2]).to(logits)
        return torch.where(outside.unsqueeze(2), (1 - blanks) * NEVER, logits)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        labels = target_tensor(batch, "CTC")
        check_outputs(outputs, labels, "CTC")
        if outputs.ndim != 3 or labels.ndim != 2 or len(labels) != len(outputs):
            raise BatchError(
                f"CTC needs logits [batch, frames, tokens] and labels [batch, length], got {in_short(outputs)} and "
                f"{in_short(labels)}"
            )
        tokens, counts = _packed(labels)
        wide = torch.float32 if outputs.device.type == "mps" else torch.float64  # sums over hundreds of frames
        total = _log_probability(outputs.to(wide).log_softmax(dim=2), tokens, counts, self.blank)
        losses = torch.where(total > NEVER / 2, -total, 0.0 if self.zero_infinity else torch.inf)
        losses = losses if self.reduction == "sum" else losses / counts.clamp_min(1)
        return losses.to(torch.promote_types(outputs.dtype, torch.float32))

    def check(self, batch: Any, shape: Sequence[int]) -> None:
        """Refuse labels that are no tokens, and a blank among them."""
        labels = target_tensor(batch, "CTC")
        check_whole(labels, "tokens of a text")
        if len(shape) == 2:
            check_indices(labels, shape[-1], "a token of the text", ignored=True)
        position = first_with((labels == self.blank).any(dim=1)) if labels.ndim == 2 else None
        if position is not None:
            raise BatchError(
                f"a text holds the token {self.blank}, which is the blank and stands for nothing; give -100 where "
                "there is no token, as in training, or CTC(blank=) the model's own (config.pad_token_id)",
                position,
            )

    def labelled(self, batch: Any) -> int:
        """How many tokens of the batch's texts there are."""
        return int((target_tensor(batch, "CTC") >= 0).sum())


def _frames(model: nn.Module, batch: Any) -> Tensor | None:
    """How many frames each example has, `[batch]`; None where nothing was padded."""
    if not isinstance(batch, Mapping) or MASK not in batch:
        return None
    lengths: Callable[[Tensor], Tensor] | None = getattr(model, "_get_feat_extract_output_lengths", None)
    if lengths is None:
        if bool((batch[MASK] != 0).all()):
            return None
        raise BatchError(
            f"CTC cannot tell which frames of {type(model).__name__} are padding: the batch has an '{MASK}', and the "
            "model no _get_feat_extract_output_lengths; give sounds of one length, or batch_size=1"
        )
    return lengths(batch[MASK].sum(dim=-1)).long()


def _packed(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of each text first, `[batch, length]`, and how many there are."""
    kept = labels >= 0
    order = (~kept).long().argsort(dim=1, stable=True)
    return labels.gather(1, order).clamp_min(0).long(), kept.sum(dim=1)


def _log_probability(logs: Tensor, tokens: Tensor, counts: Tensor, blank: int) -> Tensor:
    """`[batch]`: the forward recursion over log-probabilities `[batch, frames, tokens]`.

    Places are the text with blanks around its tokens. alpha_t(s), of the ways to be at place s in frame t:

        alpha_t(s) = log p_t(s) + log (e^alpha_{t-1}(s) + e^alpha_{t-1}(s-1) + e^alpha_{t-1}(s-2))

    the last only from one token to another one, over the blank between them.
    """
    blanks = torch.full_like(tokens, blank)
    places = torch.cat([torch.stack([blanks, tokens], dim=2).flatten(1), blanks.new_full((len(tokens), 1), blank)], 1)
    each = logs.gather(2, places.unsqueeze(1).expand(-1, logs.shape[1], -1))  # [batch, frames, places]
    other = places[:, 2:] != places[:, :-2]
    over = F.pad(other & (places[:, 2:] != blank), (2, 0), value=False)[:, : places.shape[1]]
    alpha = F.pad(each[:, 0, :2], (0, max(0, places.shape[1] - 2)), value=NEVER)
    for frame in range(1, logs.shape[1]):
        before = F.pad(alpha, (2, 0), value=NEVER)
        skipped = torch.where(over, before[:, :-2], NEVER)
        alpha = _sum(torch.stack([alpha, before[:, 1:-1], skipped])) + each[:, frame]
    last = 2 * counts.unsqueeze(1)
    at_token = torch.where(last > 0, alpha.gather(1, (last - 1).clamp_min(0)), NEVER)
    return _sum(torch.stack([alpha.gather(1, last), at_token]).squeeze(2))


def _sum(logs: Tensor) -> Tensor:
    """`log sum exp` over the first axis. A sum of nothing but what cannot be is a constant: by its own derivative each
    term would count whole, and the tangents of places that are never reached would triple with every frame.
    """
    never = logs.amax(dim=0) < NEVER / 2
    return torch.where(never, NEVER, torch.where(never, 0.0, logs).logsumexp(dim=0))
