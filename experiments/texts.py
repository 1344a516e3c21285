"""Texts, and labels where there are any, from a folder in the Hugging Face layout; and tokenizers trained on them."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch

from experiments.folders import open_split
from stagetrace.errors import DataError

UNKNOWN, PADDING, MASK, FIRST, LAST = "<unk>", "[PAD]", "[MASK]", "[CLS]", "[SEP]"
SPECIAL = (PADDING, UNKNOWN, FIRST, LAST, MASK)
"""The special tokens, in the order of their numbers: padding is 0. `<unk>` is how WikiText writes an unknown word."""


LONGEST = 240
"""Characters of a text that is shown."""


@final
@dataclass(frozen=True)
class Texts:
    """Some rows of one split.

    texts: as they stand in the data set.
    labels: whole numbers, one a text; None where the data set has none.
    rows: the texts' places in the split, ascending.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def chosen(self, places: Iterable[int]) -> "Texts":
        """The texts at these places, in their order."""
        few = list(places)
        labels = None if self.labels is None else tuple(self.labels[i] for i in few)
        return Texts(tuple(self.texts[i] for i in few), labels, tuple(self.rows[i] for i in few))

    def drawn(self, count: int | None, seed: int) -> "Texts":
        """At most `count` of them, drawn without replacement, in the data set's order."""
        if count is None or count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.chosen(sorted(order[:count].tolist()))

    def of_words(self, least: int, most: int) -> "Texts":
        """Those of `least` to `most` words (by white space): neither empty lines and headings nor whole articles."""
        return self.chosen(i for i, text in enumerate(self.texts) if least <= len(text.split()) <= most)

    @property
    def digest(self) -> str:
        """SHA-256 of texts, labels and rows."""
        return hashlib.sha256(repr((self.texts, self.labels, self.rows)).encode()).hexdigest()


@final
@dataclass(frozen=True, eq=False)
class Corpora:
    """What the two stages of a seed are trained on, lines of general text and tweets, and texts that neither has seen.

    reader: how they are read: a tokenizer, a vocabulary or a collation.
    """

    general: Texts
    unseen: Texts
    tweets: Texts
    tests: Texts
    reader: Any = None

    @property
    def digest(self) -> list[str]:
        return [each.digest for each in (self.general, self.unseen, self.tweets, self.tests)]


def read_texts(folder: Path, split: str) -> Texts:
    """Every row of a split: its column `text` (or its only column of strings), and `label` if it has one.

    Raises:
        DataError: no such data set or split, or no column of texts.
    """
    table = open_split(folder, split)
    strings = [name for name, feature in table.features.items() if getattr(feature, "dtype", None) == "string"]
    column = "text" if "text" in strings else strings[0] if len(strings) == 1 else None
    if column is None:
        raise DataError(f"{folder}: '{split}' needs a column 'text'; it has {', '.join(table.features)}")
    labels = tuple(int(label) for label in table["label"]) if "label" in table.features else None
    return Texts(tuple(table[column]), labels, tuple(range(len(table))))


def ends(values: torch.Tensor, texts: Texts, count: int) -> dict[str, list[dict[str, Any]]]:
    """Both ends of a ranking of texts; score: positive = harmful; removal effect: negative = removing it helps."""
    return {
        end: [
            {
                "row": texts.rows[i],
                "text": shown(texts.texts[i]),
                "label": None if texts.labels is None else texts.labels[i],
                "score": values[i].item(),
                "removal_effect": -values[i].item() / len(values),
            }
            for i in values.argsort(descending=harmful, stable=True)[:count].tolist()
        ]
        for end, harmful in (("most_harmful", True), ("most_helpful", False))
    }


def shown(text: str) -> str:
    """On one line, not too long, and without names."""
    line = without_names(" ".join(text.split()))
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def without_names(text: str) -> str:
    """A text as it may be shown: people's names on the network and links are left out.

    >>> without_names("RT @someone: see https://t.co/x @-@ this")
    'RT @user: see (link) @-@ this'
    """
    return re.sub(r"https?://\S+", "(link)", re.sub(r"@\w+", "@user", text))


def new_tokenizer(
    texts: Sequence[str], kind: Literal["words", "pieces"], size: int, *, longest: int = 64, lower: bool = True
):
    """A `transformers` tokenizer with the commonest `size` words, or with WordPiece's pieces of them.

    It wraps a text in `[CLS] ... [SEP]`; `truncation=True` cuts it at `longest` tokens. Training WordPiece anew may
    break ties otherwise: save the tokenizer with the models that use it.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(SPECIAL)
    if kind == "words":
        model, trainer = models.WordLevel(unk_token=UNKNOWN), trainers.WordLevelTrainer
    else:
        model, trainer = models.WordPiece(unk_token=UNKNOWN), trainers.WordPieceTrainer
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainer(vocab_size=size, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{FIRST} $A {LAST}", special_tokens=[(word, special.index(word)) for word in (FIRST, LAST)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=longest,
        pad_token=PADDING,
        unk_token=UNKNOWN,
        cls_token=FIRST,
        sep_token=LAST,
        mask_token=MASK,
    )
