"""`bert`, `bert-lora` and `gpt`: language models of WikiText lines, fine-tuned on tweets.

A language model of some 50,000 parameters is pretrained on some lines. From there the recorded training goes on with
other lines, that the checkpoint has never seen, and then on tweets:

bert, bert-lora  a masked language model, then a classifier with a new head: all parameters, or LoRA and the head
gpt              a causal language model, then instructions ("tweet : ... sentiment :") whose answers alone are learned
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch

from benchmarks.two_stage.chains import FINETUNE, PRETRAIN, Asked, Start, start_of
from experiments.checkpoints import Checkpoints
from experiments.texts import Corpora, Texts, read_texts
from experiments.training import SILENT, Training, train_stage
from experiments.transformer_chains.data import GENERAL, TWEETS, Row, balanced, rows, tokenizer_of
from experiments.transformer_chains.models import Architecture, Family, embedding
from stagetrace import Chain, Stage, Unrolled, hf
from stagetrace.objectives.tokens import IGNORED
from stagetrace.validation import Adam, Steps

ANSWERS = ("negative", "positive")


def shape(family: Family) -> Architecture:
    """Small, since each truth is hundreds of trainings."""
    return Architecture(family, vocabulary=500, layers=1, length=24)


@final
@dataclass(frozen=True)
class Sizes:
    """base, first, second, tests: texts of the checkpoint, of both recorded stages, and of the mean query.

    steps: of each recorded stage, in batches of `batch`; whole passes over its texts.
    """

    base: int = 2000
    first: int = 320
    second: int = 480
    tests: int = 200
    steps: tuple[int, int] = (40, 60)
    batch: int = 16
    checkpoint: Training = Training(epochs=5, rate=2e-3, batch=32)


FULL = Sizes()
QUICK = Sizes(12, 12, 12, 8, (4, 4), 6, Training(epochs=2, batch=6))


@final
@dataclass(frozen=True, eq=False)
class Read:
    """The texts of a seed, the tokenizer trained on them, the checkpoint and where its Adam ended."""

    sizes: Sizes
    lines: Texts
    tweets: Texts
    tests: Texts
    tokenizer: Any
    architecture: Architecture
    checkpoint: Any
    state: Any
    facts: dict[str, Any]


def bert(asked: Asked, seed: int, singles: int) -> list[Start]:
    """Both chains over one pretraining: all parameters trained further, and LoRA."""
    read = _read(asked, seed, shape("bert"))
    first = _pretrain(read, rate=3e-4)
    data, tests = (rows(each, read.tokenizer, labels=True) for each in (read.tweets, read.tests))
    found = list[Start]()
    for name, rate in (("bert", 1e-3), ("bert-lora", 2e-3)):
        model = read.architecture.classifier(read.checkpoint, seed)
        if name == "bert-lora":
            model = read.architecture.with_lora(model, seed)
        found.append(_start(name, seed, read, first, model, data, tests, rate, singles))
    return found


def gpt(asked: Asked, seed: int, singles: int) -> list[Start]:
    """The one chain of this family."""
    read = _read(asked, seed, shape("gpt"))
    first = _pretrain(read, rate=3e-4)
    data, tests = (_instructions(each, read.tokenizer, read.architecture.length) for each in (read.tweets, read.tests))
    model = copy.deepcopy(read.checkpoint)
    return [_start("gpt", seed, read, first, model, data, tests, 1e-3, singles)]


def _read(asked: Asked, seed: int, shape: Architecture) -> Read:
    sizes = QUICK if asked.quick else FULL
    every = read_texts(asked.data / GENERAL, "train").of_words(10, 10_000)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).tolist()
    base, own = (every.chosen(sorted(p)) for p in (order[: sizes.base], order[sizes.base :][: sizes.first]))
    folder = asked.data / TWEETS
    tweets = balanced(read_texts(folder, "train"), sizes.second, seed, folder)
    tests = balanced(read_texts(folder, "test"), sizes.tests, seed, folder)
    store = Checkpoints(asked.work / "checkpoints" / f"{shape.family}-{seed}")
    tokenizer = tokenizer_of(
        store.folder / "tokenizer", Corpora(base, own, tweets, tests), shape.vocabulary, shape.length
    )
    model, plan = shape.language_model(len(tokenizer), seed), sizes.checkpoint.seeded(seed)
    given = {"architecture": asdict(shape), "training": asdict(plan), "texts": base.digest}

    def train() -> dict[str, Any]:
        stage = _language(base, tokenizer, model)
        return {"adam": train_stage(stage, plan, SILENT)}

    _ = store.trained(PRETRAIN, model, given, train)
    facts = {
        "data sets": [GENERAL, TWEETS],
        "architecture": asdict(shape),
        "sizes": asdict(sizes),
        "texts": {"pretrain": own.digest, "finetune": tweets.digest, "tests": tests.digest},
    }
    return Read(sizes, own, tweets, tests, tokenizer, shape, model, store.adam(PRETRAIN), facts)


def _language(texts: Texts, tokenizer: Any, model: Any) -> Stage:
    return hf.stage(PRETRAIN, model, rows(texts, tokenizer, labels=False), tokenizer=tokenizer, batch_size=64)


def _pretrain(read: Read, rate: float) -> Stage:
    """The recorded part of pretraining, at its start."""
    steps = Steps(Adam(rate, state=read.state), read.sizes.steps[0], read.sizes.batch)
    data = rows(read.lines, read.tokenizer, labels=False)
    link = Unrolled(recording=steps)
    return hf.stage(PRETRAIN, read.checkpoint, data, tokenizer=read.tokenizer, batch_size=64, link=link)


def _start(
    name: str,
    seed: int,
    read: Read,
    first: Stage,
    model: Any,
    data: Sequence[Row],
    tests: Sequence[Row],
    rate: float,
    singles: int,
) -> Start:
    steps = Steps(Adam(rate), read.sizes.steps[1], read.sizes.batch, schedule="cosine")
    link = Unrolled(hf.shared(model, read.checkpoint), steps)
    last = hf.stage(FINETUNE, model, list(data), tokenizer=read.tokenizer, batch_size=64, link=link)
    facts = {
        **read.facts,
        "optimisers": ["Adam(3e-4), state of the checkpoint's", f"Adam({rate:g}), cosine"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    query = hf.query(list(tests), stage=last, batch_size=len(tests))
    return start_of(name, seed, Chain(first, last), query, singles, embedding, "text", facts)


def _instructions(texts: Texts, tokenizer: Any, length: int) -> list[Row]:
    """`tweet : TEXT sentiment : ANSWER`, the tokens of the answer and the end alone to be predicted."""
    assert texts.labels is not None
    before, after = (tokenizer(words, add_special_tokens=False)["input_ids"] for words in ("tweet :", "sentiment :"))
    answers = [tokenizer(words, add_special_tokens=False)["input_ids"] for words in ANSWERS]
    room = length - len(before) - len(after) - max(map(len, answers)) - 2
    made = list[Row]()
    for text, label in zip(texts.texts, texts.labels, strict=True):
        tweet = tokenizer(text, add_special_tokens=False)["input_ids"][:room]
        prompt = [tokenizer.cls_token_id, *before, *tweet, *after]
        answer = [*answers[label], tokenizer.sep_token_id]
        made.append(
            {
                "text": text,
                "input_ids": prompt + answer,
                "attention_mask": [1] * len(prompt + answer),
                "labels": [IGNORED] * len(prompt) + answer,
            }
        )
    return made
