"""A GPT-2 of 91,520 parameters on lines of general text, and a classifier of tweets trained on from it.

FOLDER/language, FOLDER/classifier    `save_pretrained` of each, the tokenizer beside it; made once
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch

from benchmarks.setting import Asked
from experiments.texts import FIRST, LAST, PADDING, SPECIAL, Texts, new_tokenizer, read_texts
from experiments.training import Training, train_stage
from stagetrace import Chain, Query, hf
from stagetrace.progress import Bars, Progress

GENERAL, TWEETS = "wikitext2", "gop_debate"
FEWEST_WORDS = 4
QUERIES = 100
"""Test tweets whose mean loss is explained."""

PRETRAINING = Training(epochs=2, rate=2e-3, batch=32)
FINETUNING = Training(epochs=2, rate=1e-3, batch=32)
QUICK_LINES = 300


@final
@dataclass(frozen=True)
class Corpora:
    """What both models are trained on, and the tweets that are asked about."""

    lines: Texts
    tweets: Texts
    tests: Texts

    @staticmethod
    def read(asked: Asked) -> "Corpora":
        """All lines of four words or more, all tweets; a few hundred of each to see that it runs."""
        few = QUICK_LINES if asked.quick else None
        lines = read_texts(asked.data / GENERAL, "train").of_words(FEWEST_WORDS, 100_000)
        tweets, tests = (read_texts(asked.data / TWEETS, split) for split in ("train", "test"))
        return Corpora(lines.drawn(few, asked.seed), tweets.drawn(few, asked.seed), tests.drawn(few, asked.seed))


def rows(texts: Texts) -> list[dict[str, Any]]:
    """As a data set of the Hub has them."""
    labels = texts.labels or ()
    return [
        {"text": text, "label": labels[place]} if labels else {"text": text} for place, text in enumerate(texts.texts)
    ]


def chain_of(folder: Path, corpora: Corpora, seed: int) -> tuple[Chain, Query]:
    """Both stages from their folders, and a query of test tweets drawn by the seed."""
    pretrain = hf.stage("pretrain", str(folder / "language"), rows(corpora.lines), reduction="mean")
    finetune = hf.stage("finetune", str(folder / "classifier"), rows(corpora.tweets), after=pretrain)
    return Chain(pretrain, finetune), hf.query(rows(corpora.tests.drawn(QUERIES, seed)), stage=finetune)


def train(folder: Path, corpora: Corpora, seed: int) -> None:
    """Both models, unless they lie in the folder already."""
    if (folder / "classifier" / "config.json").exists():
        return
    tokenizer = new_tokenizer([*corpora.lines.texts, *corpora.tweets.texts], "pieces", 2000, longest=64)
    progress: Progress = Bars()
    language = hf.stage(
        "pretrain",
        _new("GPT2LMHeadModel", len(tokenizer), seed),
        rows(corpora.lines),
        tokenizer=tokenizer,
        reduction="mean",
    )
    train_stage(language, PRETRAINING.seeded(seed), progress)
    _save(language.model, tokenizer, folder / "language")
    model = _new("GPT2ForSequenceClassification", len(tokenizer), seed)
    model.transformer.load_state_dict(cast(Any, language.model).transformer.state_dict())
    classifier = hf.stage("finetune", model, rows(corpora.tweets), tokenizer=tokenizer, after=language)
    train_stage(classifier, FINETUNING.seeded(seed), progress)
    _save(classifier.model, tokenizer, folder / "classifier")


def _new(kind: str, words: int, seed: int) -> Any:
    """A new model of two layers with 32 numbers a token; the seed draws its weights."""
    import transformers

    shape: Any = transformers.GPT2Config  # takes `num_labels` too, which its signature does not say
    config = shape(
        vocab_size=words,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        num_labels=2,
        pad_token_id=SPECIAL.index(PADDING),
        bos_token_id=SPECIAL.index(FIRST),
        eos_token_id=SPECIAL.index(LAST),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, kind)(config).eval()


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
