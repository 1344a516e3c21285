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
    likeliest, chance: what the model held likeliest in its place, and that one's probability.
    """

    text: str
    loss: float
    likeliest: str
    chance: float

    @property
    def probability(self) -> float:
        """That the model gave it, from 0 to 1."""
        return exp(-self.loss)


@final
@dataclass(frozen=True, eq=False)
class Question:
    """An answer that is asked about.

    kind: of a causal language model the completion, of a masked one the words at its masks, of a classifier the label.
    said: by the model itself, as its likeliest answer; or given by whoever asks.
    tokens: of the answer, in order; of a label one.
    query: the same for `trace`: its loss is the sum over the tokens, `-log p(answer | prompt)`, in nats.
    """

    kind: Kind
    prompt: str
    answer: str
    said: Literal["by the model", "given"]
    tokens: tuple[Token, ...]
    query: Query

    @property
    def loss(self) -> float:
        """`-log p(answer | prompt)`; unit: nats."""
        return sum(token.loss for token in self.tokens)

    @property
    def spoken(self) -> str:
        """What the answer is called: "completion", "word" or "label"."""
        return SPOKEN[self.kind]

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each token the share of the loss, from 0 to 1; they sum to 1."""
        whole = self.loss or 1.0
        return tuple(token.loss / whole for token in self.tokens)


def tokens_of(logits: Tensor, labels: Sequence[int], names: Any) -> tuple[Token, ...]:
    """The tokens with these labels, by the logits `[tokens, choices]` that predict them.

    names: from the numbers of tokens, in order, to their texts.
    """
    logs = logits.double().log_softmax(dim=-1).cpu()
    best = logs.argmax(dim=-1)
    losses = -logs[torch.arange(len(labels)), torch.tensor(labels)]
    chances = logs.gather(1, best.unsqueeze(1)).exp().flatten().tolist()
    said, likeliest = names(list(labels)), [names([one])[0] for one in best.tolist()]
    rows = zip(said, losses.clamp_min(0.0).tolist(), likeliest, chances, strict=True)
    return tuple(Token(*row) for row in rows)
