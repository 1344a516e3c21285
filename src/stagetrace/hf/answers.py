"""What a stage's model answers: the likeliest next tokens, the likeliest words at its masks, the likeliest class."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from stagetrace.errors import DataError
from stagetrace.hf.asking import most_tokens, tokenizer_of
from stagetrace.hf.columns import MASK, TOKENISED
from stagetrace.hf.packages import base_of
from stagetrace.hf.signature import takes
from stagetrace.stages.stage import Stage


def continued(stage: Stage, tokens: list[int], most: int, where: str) -> tuple[list[int], bool]:
    """What a causal language model writes after these tokens: each time the likeliest one (greedy decoding).

    At most `most` tokens; it ends before an end-of-text token, and where the model has no more positions. With them
    whether it ended by itself.

    Raises:
        DataError: the model ends the text at once, or its positions are used up by the prompt.
    """
    room = most_tokens(stage)
    if not tokens:
        raise DataError(f"{where}: the prompt has no token, and a model has nothing to go on from; give a prompt")
    if room is not None and len(tokens) >= room:
        raise DataError(
            f"{where}: the prompt is {len(tokens):,} tokens, which leaves no room for an answer: the texts of "
            f"{stage.where} are cut after {room:,}"
        )
    ends, written, ended = _ends(stage), list[int](), False
    while len(written) < most and (room is None or len(tokens) + len(written) < room):
        found = int(logits(stage, [*tokens, *written])[0, -1].argmax())
        ended = found in ends
        if ended:
            break
        written.append(found)
    if not written:
        raise DataError(
            f"{where}: the model's likeliest answer is to end the text at once; give a completion to ask about"
        )
    return written, ended


def logits(stage: Stage, tokens: list[int], **features: Any) -> Tensor:
    """`[1, length, vocabulary]`, or `[1, classes]`, for one sentence, in eval mode."""
    model: nn.Module = stage.evaluated
    device = next(model.parameters()).device
    masked = {MASK: [1] * len(tokens)} if MASK in takes(base_of(model)) else {}
    batch = {TOKENISED: tokens, **masked, **features}
    with torch.no_grad():
        return model(**{name: torch.tensor([value], device=device) for name, value in batch.items()}).logits


def _ends(stage: Stage) -> Collection[int]:
    """The tokens that end a text, by the model's own settings and its tokenizer's."""
    base = base_of(stage.model)
    owners = (getattr(base, "generation_config", None), base.config, tokenizer_of(stage))
    found = set[int]()
    for owner in owners:
        end = getattr(owner, "eos_token_id", None)
        found |= set(end if isinstance(end, (list, tuple)) else () if end is None else (end,))
    return found
