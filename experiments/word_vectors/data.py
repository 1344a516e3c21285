"""Lines with their skip-gram pairs, and tweets with their labels, as tensors over one vocabulary.

A line's pairs are a function of its row in the data set and of the seed alone: the windows, which pairs stay where
there are too many, and the negatives. Drawing them once makes a line an example like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.texts import SPECIAL, Texts, new_tokenizer
from stagetrace.errors import DataError

Ids = NDArray[np.int64]

COMMONEST = 100
"""So many of the commonest words are left out: marks and function words, near everything and telling nothing."""
SKIPPED = len(SPECIAL) + COMMONEST
POWER = 0.75
"""Negatives are drawn in proportion to the count to this power."""


@final
@dataclass(frozen=True)
class Drawing:
    """How pairs are drawn. window: at most so many words to either side, drawn for each word from 1 on.

    pairs: at most so many a line, drawn from all of them. negatives: words drawn for each pair.
    """

    window: int = 5
    pairs: int = 16
    negatives: int = 3


@final
@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The commonest words of some texts, without the very commonest; word 0 is padding.

    counts: how often each word stands in the lines that pairs are drawn from, `[words]`, 0 for padding.
    """

    tokenizer: Any
    words: tuple[str, ...]
    counts: Ids

    @staticmethod
    def of(lines: Sequence[str], others: Sequence[str], size: int) -> "Vocabulary":
        """The commonest `size` words of all texts after the hundred that are left out, counted again in the lines.

        Raises:
            DataError: no line has one of them.
        """
        tokenizer = new_tokenizer([*lines, *others], "words", size + SKIPPED, longest=10**6)
        words = tuple(tokenizer.convert_ids_to_tokens(list(range(SKIPPED, len(tokenizer)))))
        empty = Vocabulary(tokenizer, ("", *words), np.zeros(1 + len(words), dtype=np.int64))
        counts = np.bincount(np.concatenate(empty.numbers(lines)), minlength=len(empty))
        if not counts.any():
            raise DataError("no line has a word of the vocabulary; draw more lines, or a larger vocabulary")
        return replace(empty, counts=counts)

    def __len__(self) -> int:
        return len(self.words)

    def numbers(self, texts: Sequence[str]) -> list[Ids]:
        """The numbers of each text's words; what is not in the vocabulary is left out."""
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [np.array([i + 1 - SKIPPED for i in ids if i >= SKIPPED], dtype=np.int64) for ids in found]

    def text(self, numbers: Tensor) -> str:
        """The words with these numbers, padding left out."""
        return " ".join(self.words[i] for i in numbers.tolist() if i)


def lines_of(texts: Texts, vocabulary: Vocabulary, drawing: Drawing, seed: int) -> tuple[TensorDataset, Texts]:
    """Lines as `(words [L], centres [pairs], targets [pairs, 1 + negatives], mask [pairs])`, and their texts.

    The first target is the word that stands near the centre, the others are negatives; all is padded with 0, and `mask`
    is 1 on pairs. Lines without a pair are left out.
    """
    noise = np.cumsum(vocabulary.counts.astype(float) ** POWER)
    every = vocabulary.numbers(texts.texts)
    drawn = [
        pairs_of(ids, noise / noise[-1], drawing, np.random.default_rng([seed, row]))
        for ids, row in zip(every, texts.rows, strict=True)
    ]
    places = [place for place, (centres, _) in enumerate(drawn) if len(centres)]
    if not places:
        raise DataError("no line has two words of the vocabulary near each other; draw more lines")
    words = _padded([every[place] for place in places])
    centres = _padded([drawn[place][0] for place in places], drawing.pairs)
    targets = torch.zeros(len(places), drawing.pairs, 1 + drawing.negatives, dtype=torch.int64)
    for row, place in enumerate(places):
        found = drawn[place][1]
        targets[row, : len(found)] = torch.from_numpy(found)
    return TensorDataset(words, centres, targets, centres > 0), texts.chosen(places)


def pairs_of(ids: Ids, noise: NDArray[np.float64], drawing: Drawing, random: np.random.Generator) -> tuple[Ids, Ids]:
    """A line's pairs: centres `[m]` and targets `[m, 1 + negatives]`, m at most `drawing.pairs`.

    noise: the running sum of the negatives' distribution. A negative may happen to be the near word.
    """
    window = random.integers(1, drawing.window + 1, len(ids))
    centres, near = [ids[:0]], [ids[:0]]
    for offset in range(1, min(drawing.window, len(ids) - 1) + 1):
        first, second, reach = ids[:-offset], ids[offset:], window >= offset
        centres += [first[reach[:-offset]], second[reach[offset:]]]
        near += [second[reach[:-offset]], first[reach[offset:]]]
    pairs = np.stack([np.concatenate(centres), np.concatenate(near)], axis=1)
    pairs = pairs[np.sort(random.permutation(len(pairs))[: drawing.pairs])]
    negatives = np.searchsorted(noise, random.random((len(pairs), drawing.negatives)), side="right")
    return pairs[:, 0], np.concatenate([pairs[:, 1:], negatives], axis=1)


def tweets_of(texts: Texts, vocabulary: Vocabulary) -> tuple[TensorDataset, Texts]:
    """Tweets as `(words [L], label)`, and their texts; those without a word of the vocabulary are left out."""
    if texts.labels is None:
        raise DataError("the tweets have no column 'label'; give a data set of labelled texts")
    every = vocabulary.numbers(texts.texts)
    places = [place for place, ids in enumerate(every) if len(ids)]
    if not places:
        raise DataError("no tweet has a word of the vocabulary; draw more texts, or a larger vocabulary")
    labels = torch.tensor([texts.labels[place] for place in places])
    return TensorDataset(_padded([every[place] for place in places]), labels), texts.chosen(places)


def _padded(rows: Sequence[Ids], width: int | None = None) -> Tensor:
    width = width or max(len(row) for row in rows)
    padded = torch.zeros(len(rows), width, dtype=torch.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.from_numpy(row)
    return padded
