"""Skip-gram with negative sampling, a classifier on top of its vectors, and their losses."""

from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

START = 0.3
"""Standard deviation of every number of the vectors at the start."""


@final
class SkipGram(nn.Module):
    """Word vectors: `vectors` of the words in the middle (what the next stage keeps), `contexts` of those near them.

    Example:
        >>> SkipGram(words=10, width=4)(torch.zeros(2, 3, dtype=int), torch.zeros(2, 3, 6, dtype=int)).shape
        torch.Size([2, 3, 6])
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(words, width)
        self.contexts = nn.Embedding(words, width)
        for matrix in (self.vectors, self.contexts):
            nn.init.normal_(matrix.weight, std=START)

    def forward(self, centres: Tensor, targets: Tensor) -> Tensor:
        """Logits `[n, pairs, targets]` that each target stands near its centre."""
        return (self.contexts(targets) @ self.vectors(centres).unsqueeze(-1)).squeeze(-1)


@final
class BagOfVectors(nn.Module):
    """The mean of a text's word vectors, and a linear head.

    Example:
        >>> BagOfVectors(words=10, width=4, classes=2)(torch.tensor([[6, 7, 0]])).shape
        torch.Size([1, 2])
    """

    def __init__(self, words: int, width: int, classes: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(words, width)
        self.head = nn.Linear(width, classes)

    def mean(self, words: Tensor) -> Tensor:
        """`[n, width]` of words `[n, L]`, padded with 0."""
        known = (words > 0).unsqueeze(-1).to(self.vectors.weight)
        return (self.vectors(words) * known).sum(dim=1) / known.sum(dim=1)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.mean(words))


@final
class NegativeSampling:
    """Mean over a line's pairs of `-log sigmoid(u_near . v) - sum over its negatives of log sigmoid(-u . v)`, in nats.

    v is the centre's vector, u are the targets' contexts. A batch is `(words, centres, targets, mask)`.

    Source: Mikolov et al. (2013), eq. 4.
    """

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        _, centres, targets, _ = batch
        return model(centres, targets)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        mask = batch[3].to(outputs)
        pairs = F.softplus(-outputs[..., 0]) + F.softplus(outputs[..., 1:]).sum(dim=-1)
        return (pairs * mask).sum(dim=-1) / mask.sum(dim=-1)


def embedded(model: nn.Module, batch: Any) -> Tensor:
    """The mean vector of a line's or tweet's words: both batches begin with them."""
    assert isinstance(model, BagOfVectors)
    return model.mean(batch[0])
