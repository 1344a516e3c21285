"""What is asked: a prompt, what the last stage's model said to it, and each token's share of the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, Literal, final

import torch
from torch import Tensor

from stagetrace.tracing.query import Query

Kind = Literal["completion", "masks", "label"]

UNIT = "nats"

SPOKEN: dict[Kind, str] = {"completion": "completion", "masks": "word", "label": "label"}
"""What an answer of each kind is called."""


@final
@dataclass(frozen=True)
class Token:
    """One token of an answer, or its label.

    loss: minus the logarithm of its probability, given all before it; unit: nats.
    likeliest, chance: what the model held likeliest in its place, and that one's probability; is_likeliest: this one.
    """

    text: str
    loss: float
    likeliest: str
    chance: float

    is_likeliest: bool

    @property
    def probability(self) -> float:
        """That the model gave it, from 0 to 1."""
        return exp(-self.loss)


@final
@dataclass(frozen=True)
class Contrast:
    """Another answer to the same prompt; tokens as of the answer."""

    answer: str
    tokens: tuple[Token, ...]

    @property
    def loss(self) -> float:
        """`-log p(this answer | prompt)`; unit: nats."""
        return sum(token.loss for token in self.tokens)


@final
@dataclass(frozen=True, eq=False)
class Question:
    """An answer that is asked about.

    kind: of a causal language model the completion, of a masked one the words at its masks, of a classifier the label.
    said: by the model itself, as its likeliest answer; or given by whoever asks.
    tokens: of the answer, in order; of a label one.
    query: the same for `trace`. Its loss is the sum over the tokens, `-log p(answer | prompt)`, in nats; with a
        contrast less that of the other answer.
    contrast: another answer to the same prompt: why the first one and not this? None asks about the first alone.
    cut: whether the model would have written more.
    """

    kind: Kind
    prompt: str
    answer: str
    said: Literal["by the model", "given"]
    tokens: tuple[Token, ...]
    query: Query
    contrast: "Contrast | None" = None
    cut: bool = False

    @property
    def loss(self) -> float:
        """`-log p(answer | prompt)`, without the contrast's; unit: nats."""
        return sum(token.loss for token in self.tokens)

    @property
    def traced(self) -> float:
        """The query loss: that of the answer, less that of the contrast; unit: nats."""
        return self.loss - (0.0 if self.contrast is None else self.contrast.loss)

    @property
    def spoken(self) -> str:
        """What the answer is called: "completion", "word" or "label"."""
        return SPOKEN[self.kind]


def shares(tokens: Sequence[Token]) -> tuple[float, ...]:
    """Of each token the share of their loss, from 0 to 1; they sum to 1."""
    whole = sum(token.loss for token in tokens) or 1.0
    return tuple(token.loss / whole for token in tokens)


def tokens_of(logits: Tensor, labels: Sequence[int], names: Any) -> tuple[Token, ...]:
    """The tokens with these labels, by the logits `[tokens, choices]` that predict them.

    names: from the numbers of tokens, in order, to their texts.
    """
    logs = logits.double().log_softmax(dim=-1).cpu()
    best = logs.argmax(dim=-1)
    losses = -logs[torch.arange(len(labels)), torch.tensor(labels)]
    chances = logs.gather(1, best.unsqueeze(1)).exp().flatten().tolist()
    numbers: list[int] = best.tolist()
    likeliest = [names([*labels[:place], one])[-1] for place, one in enumerate(numbers)]
    same = [one == label for one, label in zip(numbers, labels, strict=True)]
    rows = zip(names(list(labels)), losses.clamp_min(0.0).tolist(), likeliest, chances, same, strict=True)
    return tuple(Token(*row) for row in rows)
