"""The texts of both tasks as rows, and the tokenizer of all models of a seed."""

from pathlib import Path
from typing import Any

import torch

from experiments.settings import Settings
from experiments.texts import Corpora, Texts, new_tokenizer, read_texts
from stagetrace.errors import DataError

GENERAL, TWEETS = "wikitext2", "gop_debate"
FEWEST_WORDS = 10
"""Of a line of general text, by white space: empty lines and most headings have fewer."""

Row = dict[str, Any]
"""`text`, its `input_ids` and `attention_mask`, and `label` for a classifier."""


def corpora_of(settings: Settings, general: int, tweets: int, tests: int) -> Corpora:
    """So many texts, drawn by the seed; `--examples` caps both stages, `--dataset` stands in for the general text."""
    seed = settings.seed
    folder, labelled = settings.folder(GENERAL), settings.data / TWEETS
    lines = [read_texts(folder, split).of_words(FEWEST_WORDS, 10_000) for split in ("train", "test")]
    return Corpora(
        lines[0].drawn(settings.most(general), seed),
        lines[1].drawn(settings.most(tests), seed),
        balanced(read_texts(labelled, "train"), settings.most(tweets), seed, labelled),
        balanced(read_texts(labelled, "test"), settings.most(tests), seed, labelled),
    )


def balanced(texts: Texts, count: int, seed: int, where: Path) -> Texts:
    """`count` texts in the data set's order, half of each of two labels (fewer where a label has fewer).

    Raises:
        DataError: the labels are not 0 and 1.
    """
    labels = torch.tensor(texts.labels or ())
    if sorted(set(labels.tolist())) != [0, 1]:
        raise DataError(f"{where}: sentiment needs the labels 0 and 1, got {sorted(set(labels.tolist()))}")
    half = min(count // 2, int(labels.sum()), int((1 - labels).sum()))
    generator = torch.Generator().manual_seed(seed)
    places: list[int] = []
    for label in (0, 1):
        own = (labels == label).nonzero()[:, 0]
        places += own[torch.randperm(len(own), generator=generator)[:half]].tolist()
    return texts.chosen(sorted(places))


def rows(texts: Texts, tokenizer: Any, *, labels: bool) -> list[Row]:
    """As `stagetrace.hf` reads them, tokenised once: every curvature product reads its examples again."""
    made: list[Row] = []
    for place, text in enumerate(texts.texts):
        cut = tokenizer(text, truncation=True)
        row = {"text": text, "input_ids": cut["input_ids"], "attention_mask": cut["attention_mask"]}
        made.append(row if not labels or texts.labels is None else row | {"label": texts.labels[place]})
    return made


def tokenizer_of(folder: Path, corpora: Corpora, vocabulary: int, length: int) -> Any:
    """The tokenizer in `folder`, or a new one there, trained on the texts of both stages."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        texts = [*corpora.general.texts, *corpora.tweets.texts]
        new_tokenizer(texts, "pieces", vocabulary, longest=length).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
