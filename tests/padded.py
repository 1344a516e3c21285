"""Texts of different lengths, padded together, and a small model of them that does not see the padding."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

WORDS, CLASSES, DIMENSIONS = 7, 3, 2

Pair = tuple[Tensor, Tensor]

widths: list[int] = []
"""Words and padding of each batch that was made; a test that looks at them clears them first."""


def padded(items: list[Pair]) -> Pair:
    """A batch, each text filled up by word 0 to the longest."""
    words = pad_sequence([words for words, _ in items], batch_first=True)
    widths.append(words.numel())
    return words, torch.stack([label for _, label in items])


class Bag(nn.Module):
    """The tanh of the mean of a text's vectors; word 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(WORDS, DIMENSIONS)
        self.head = nn.Linear(DIMENSIONS, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        kept = (words > 0).to(self.head.weight).unsqueeze(-1)
        return self.head(torch.tanh((self.vectors(words) * kept).sum(dim=1) / kept.sum(dim=1)))


def texts(lengths: list[int]) -> list[Pair]:
    """Texts of these lengths with their classes, always the same."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randint(1, WORDS, (n,), generator=generator), torch.randint(0, CLASSES, (), generator=generator))
        for n in lengths
    ]
