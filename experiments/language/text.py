"""Sentences as `elmo.Elmo` reads them: distinct words by their characters, and where each is to be predicted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.texts import FIRST, LAST, Texts
from stagetrace.errors import DataError

PAD, START, END = 0, 257, 258
"""Character numbers: 0 pads, a byte b of UTF-8 is b + 1, and each word stands between a start and an end."""
MARKS = {FIRST: 259, LAST: 260}
"""A sentence's begin and end are words of one character of their own."""


@final
class Reader:
    """A collation: list of `{"text": ..., "label": ...}` -> what the models read.

    tokenizer: of `corpora.new_tokenizer`, whose rules cut words and whose vocabulary is predicted.
    letters: characters a word, its start and end among them; longer words are cut, shorter ones padded.
    tokens: a sentence's most, its begin and end among them.

    Entries, for `b` sentences of at most `t` tokens with `n` predictions in each direction:
        characters `[words, letters]`: the batch's distinct words. sentences `[b, t]`: each token's place among them.
        turned `[b, t]`: the place of each token when the sentence is read backwards.
        shares `[b, t]`: 1 / tokens of the sentence, 0 on padding.
        before, after `[n]`: where, in `[b t]`, the forward and the backward states are that predict.
        answers `[2 n]`: the words to predict, forward ones first. owners `[2 n]`: their sentences.
        parts `[2 n]`: 1 / predictions of the sentence. labels `[b]`, where the examples have any.
    """

    def __init__(self, tokenizer: Any, letters: int, tokens: int) -> None:
        self.letters, self.tokens = letters, tokens
        self._rules, self._numbers = tokenizer.backend_tokenizer, tokenizer.convert_tokens_to_ids
        self._cut: dict[str, list[str]] = {}
        self._known: dict[str, tuple[list[int], int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what earlier calls left in its caches, which change no result: a run is known again after them."""
        return {**vars(self), "_cut": {}, "_known": {}}

    def words(self, text: str) -> list[str]:
        """The words of a text as the models see them, marks included."""
        if text not in self._cut:
            cut = self._rules.pre_tokenizer.pre_tokenize_str(self._rules.normalizer.normalize_str(text))
            self._cut[text] = [FIRST, *(word for word, _ in cut[: self.tokens - 2]), LAST]
        return self._cut[text]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        rows = [self.words(example["text"]) for example in examples]
        distinct = sorted({word for row in rows for word in row})  # the same batch is the same whatever was read before
        places = {word: place for place, word in enumerate(distinct)}
        characters, numbers = zip(*(self._spelt_and_numbered(word) for word in distinct), strict=True)
        longest = max(map(len, rows))
        sentences = torch.tensor([[places[word] for word in row] + [0] * (longest - len(row)) for row in rows])
        found = {
            "characters": torch.tensor(characters),
            "sentences": sentences,
            **_places(torch.tensor([len(row) for row in rows]), longest),
        }
        answers = torch.tensor(numbers)[sentences].flatten()
        found["answers"] = torch.cat([answers[found["before"] + 1], answers[found["after"] - 1]])
        if "label" in examples[0]:
            found["labels"] = torch.tensor([example["label"] for example in examples])
        return found

    def _spelt_and_numbered(self, word: str) -> tuple[list[int], int]:
        if word not in self._known:
            self._known[word] = spelt(word, self.letters), self._numbers(word)
        return self._known[word]


def spelt(word: str, letters: int) -> list[int]:
    """A word's characters, `letters` of them.

    Example:
        >>> spelt("ab", 6)
        [257, 98, 99, 258, 0, 0]
    """
    inside = [MARKS[word]] if word in MARKS else [byte + 1 for byte in word.encode()[: letters - 2]]
    return [START, *inside, END] + [PAD] * (letters - 2 - len(inside))


def _places(lengths: Tensor, longest: int) -> dict[str, Tensor]:
    """Where tokens lie and which of them predict; a sentence of k tokens makes k - 1 predictions each way."""
    time = torch.arange(longest).expand(len(lengths), longest)
    inside = time < lengths.unsqueeze(1)
    last = lengths.unsqueeze(1) - 1
    before, after = (time < last).flatten().nonzero()[:, 0], (inside & (time > 0)).flatten().nonzero()[:, 0]
    owners = torch.cat([before // longest, after // longest])
    return {
        "turned": torch.where(inside, last - time, time),
        "shares": inside / lengths.double().unsqueeze(1),
        "before": before,
        "after": after,
        "owners": owners,
        "parts": 1 / (2 * (lengths.double() - 1))[owners],
    }


@final
@dataclass(frozen=True)
class BothWays:
    """The loss of a sentence: the mean over its predictions, of next words and of previous words alike. Unit: nats.

    The model's outputs are logits `[predictions, words]`. sampled: the right word stands first among them, as
    `elmo.SampledSoftmax` puts it; else each word of the vocabulary has its place.
    """

    sampled: bool = field(default=False)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        right = torch.zeros_like(batch["answers"]) if self.sampled else batch["answers"]
        losses = F.cross_entropy(outputs, right, reduction="none") * batch["parts"].to(outputs)
        return losses.new_zeros(len(batch["sentences"])).index_add(0, batch["owners"], losses)


@final
@dataclass(frozen=True)
class OfLabels:
    """Cross-entropy of a classifier's logits `[batch, classes]`, per sentence. Unit: nats."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs, batch["labels"], reduction="none")


def examples(texts: Texts) -> list[dict[str, Any]]:
    """The texts as examples of a stage, with their labels where they have any."""
    if texts.labels is None:
        return [{"text": text} for text in texts.texts]
    return [{"text": text, "label": label} for text, label in zip(texts.texts, texts.labels, strict=True)]


def with_words(texts: Texts, reader: Reader, least: int, most: int) -> Texts:
    """Those of `least` to `most` words, as the reader cuts them, marks not counted.

    Raises:
        DataError: there is none.
    """
    kept = [place for place, text in enumerate(texts.texts) if least <= len(reader.words(text)) - 2 <= most]
    if not kept:
        raise DataError(f"no sentence of {least} to {most} words among {len(texts)}; give a larger data set")
    return texts.chosen(kept)


def lengths(texts: Iterable[str], reader: Reader) -> list[int]:
    """Tokens of each text, marks included."""
    return [len(reader.words(text)) for text in texts]
