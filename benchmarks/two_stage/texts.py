"""`bert`, `bert-lora` and `gpt`: language models of WikiText lines, fine-tuned on other texts.

A language model of some 26,000 parameters is pretrained on some lines. From there the recorded training goes on with
other lines, that the checkpoint has never seen, and then:

bert       a masked language model, then news or tweets, by a new head on the mean of the tokens: all parameters
bert-lora  the same by LoRA and a head on the first token; adapters and head start from an earlier fine-tuning of the
           checkpoint, with Adam's state: pretraining went on, and fine-tuning goes on upon what it left
gpt        a causal language model, then instructions ("tweet : ... sentiment :") whose answers alone are learned

(A head on the first token that is drawn at random says the same of every text for the first hundred steps, in which the
order of the batches decides; the sentiment of tweets is hardly learned at all in so few.)
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from benchmarks.two_stage.chains import FINETUNE, PRETRAIN, Asked, Start, start_of
from experiments.checkpoints import Checkpoints
from experiments.texts import Corpora, Texts, read_texts
from experiments.training import SILENT, Training, train_stage
from experiments.transformer_chains.data import GENERAL, TWEETS, Row, balanced, rows, tokenizer_of
from experiments.transformer_chains.models import Architecture, Family, embedding
from stagetrace import Chain, Stage, Unrolled, hf
from stagetrace.objectives.tokens import IGNORED
from stagetrace.validation import Adam, Steps

NEWS = "obw"
CHECKPOINT = Training(epochs=5, rate=2e-3, batch=32)
ANSWERS = ("negative", "positive")


def shape(family: Family) -> Architecture:
    """Small, since each truth is hundreds of trainings."""
    return Architecture(family, vocabulary=500, layers=1, length=24)


@final
@dataclass(frozen=True)
class Sizes:
    """base, first, second, tests: texts of the checkpoint, of both recorded stages, and of the mean query.

    passes: over the texts of the first recorded stage, in batches of `batch`; whole ones, so that every order sees each
        text as often. checkpoint: how it was trained.
    """

    base: int = 2000
    first: int = 320
    second: int = 480
    tests: int = 200
    passes: int = 2
    batch: int = 16
    checkpoint: Training = CHECKPOINT


FULL = Sizes()
QUICK = Sizes(12, 12, 12, 8, 2, 6, Training(epochs=2, batch=6))


@final
@dataclass(frozen=True, eq=False)
class Read:
    """The texts of a seed, the tokenizer trained on them, the checkpoint and where its Adam ended."""

    sizes: Sizes
    lines: Texts
    texts: Texts
    tests: Texts
    tokenizer: Any
    architecture: Architecture
    checkpoint: Any
    state: Any
    facts: dict[str, Any]


def bert(asked: Asked, seed: int, singles: int) -> list[Start]:
    """Both chains over one pretraining: all parameters trained further, and LoRA."""
    read = _read(asked, seed, shape("bert"), sources)
    first = _pretrain(read, rate=3e-4)
    data, tests = (rows(each, read.tokenizer, labels=True) for each in (read.texts, read.tests))
    whole = MeanPooled(copy.deepcopy(read.checkpoint.bert), seed)
    adapted = read.architecture.with_lora(read.architecture.classifier(read.checkpoint, seed), seed)
    earlier = Training(epochs=6, rate=1e-2, batch=read.sizes.batch, seed=seed)
    state = _fine_tuned(asked, "bert-lora", read, adapted, data, earlier)
    return [
        _start("bert", seed, read, first, whole, data, tests, Adam(1e-3), singles),
        _start("bert-lora", seed, read, first, adapted, data, tests, Adam(5e-4, state=state), singles),
    ]


@final
class MeanPooled(nn.Module):
    """A classifier of two classes on the mean of a text's last layer; the seed draws its head."""

    def __init__(self, bert: Any, seed: int) -> None:
        super().__init__()
        self.bert = bert
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.classifier = nn.Linear(bert.config.hidden_size, 2)

    @property
    def base_model(self) -> Any:
        return self.bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.classifier(embedding(self, {"input_ids": input_ids, "attention_mask": attention_mask}))


def gpt(asked: Asked, seed: int, singles: int) -> list[Start]:
    """The one chain of this family."""
    read = _read(asked, seed, shape("gpt"), tweets)
    first = _pretrain(read, rate=3e-4)
    data, tests = (_instructions(each, read.tokenizer, read.architecture.length) for each in (read.texts, read.tests))
    model = copy.deepcopy(read.checkpoint)
    return [_start("gpt", seed, read, first, model, data, tests, Adam(1e-3), singles)]


def sources(data: Path, split: str, count: int, seed: int) -> Texts:
    """So many texts, half of them news (0) and half tweets (1)."""
    half = [read_texts(data / name, split).drawn(count // 2, seed) for name in (NEWS, TWEETS)]
    labels = [label for label, texts in enumerate(half) for _ in texts.texts]
    return Texts(sum((each.texts for each in half), ()), tuple(labels), sum((each.rows for each in half), ()))


def tweets(data: Path, split: str, count: int, seed: int) -> Texts:
    """So many tweets, half of each sentiment."""
    return balanced(read_texts(data / TWEETS, split), count, seed, data / TWEETS)


def _read(asked: Asked, seed: int, shape: Architecture, second: Callable[[Path, str, int, int], Texts]) -> Read:
    sizes = QUICK if asked.quick else FULL
    every = read_texts(asked.data / GENERAL, "train").of_words(10, 10_000)
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).tolist()
    base, own = (every.chosen(sorted(p)) for p in (order[: sizes.base], order[sizes.base :][: sizes.first]))
    texts, tests = (
        second(asked.data, split, count, seed) for split, count in (("train", sizes.second), ("test", sizes.tests))
    )
    store = Checkpoints(asked.work / "checkpoints" / f"{shape.family}-{seed}")
    tokenizer = tokenizer_of(
        store.folder / "tokenizer", Corpora(base, own, texts, tests), shape.vocabulary, shape.length
    )
    model, plan = shape.language_model(len(tokenizer), seed), sizes.checkpoint.seeded(seed)
    given = {"architecture": asdict(shape), "training": asdict(plan), "texts": base.digest}

    def train() -> dict[str, Any]:
        stage = _language(base, tokenizer, model)
        return {"adam": train_stage(stage, plan, SILENT)}

    _ = store.trained(PRETRAIN, model, given, train)
    facts = {
        "data sets": [GENERAL, second.__name__],
        "architecture": asdict(shape),
        "sizes": asdict(sizes),
        "texts": {"pretrain": own.digest, "finetune": texts.digest, "tests": tests.digest},
    }
    return Read(sizes, own, texts, tests, tokenizer, shape, model, store.adam(PRETRAIN), facts)


def _fine_tuned(asked: Asked, name: str, read: Read, model: Any, data: list[Row], plan: Training) -> Any:
    """Train the model from the checkpoint; what is left of it is its head (and adapters), and Adam's state."""
    store = Checkpoints(asked.work / "checkpoints" / f"{name}-{plan.seed}")

    def train() -> dict[str, Any]:
        stage = hf.stage(FINETUNE, model, data, tokenizer=read.tokenizer, batch_size=64, reduction="mean")
        return {"adam": train_stage(stage, plan, SILENT)}

    given = {"architecture": asdict(read.architecture), "training": asdict(plan), "texts": read.texts.digest}
    _ = store.trained(FINETUNE, model, given, train)
    return store.adam(FINETUNE)


def _language(texts: Texts, tokenizer: Any, model: Any) -> Stage:
    return hf.stage(
        PRETRAIN, model, rows(texts, tokenizer, labels=False), tokenizer=tokenizer, batch_size=64, reduction="mean"
    )


def _pretrain(read: Read, rate: float) -> Stage:
    """The recorded part of pretraining, at its start."""
    sizes = read.sizes
    steps = Steps(Adam(rate, state=read.state), sizes.passes * sizes.first // sizes.batch, sizes.batch)
    data = rows(read.lines, read.tokenizer, labels=False)
    link = Unrolled(recording=steps)
    return hf.stage(
        PRETRAIN, read.checkpoint, data, tokenizer=read.tokenizer, batch_size=64, reduction="mean", link=link
    )


def _start(
    name: str,
    seed: int,
    read: Read,
    first: Stage,
    model: Any,
    data: Sequence[Row],
    tests: Sequence[Row],
    optimizer: Adam,
    singles: int,
) -> Start:
    sizes = read.sizes
    steps = Steps(optimizer, sizes.passes * sizes.second // sizes.batch, sizes.batch, schedule="cosine")
    if isinstance(model, MeanPooled):  # examples and loss are those of a classifier of the library's
        usual = read.architecture.classifier(read.checkpoint, seed)
        described = hf.stage(FINETUNE, usual, list(data), tokenizer=read.tokenizer, batch_size=64, reduction="mean")
        last = replace(described, model=model, link=Unrolled("bert", steps))
    else:
        link = Unrolled(hf.shared(model, read.checkpoint), steps)
        last = hf.stage(
            FINETUNE, model, list(data), tokenizer=read.tokenizer, batch_size=64, reduction="mean", link=link
        )
    facts = {
        **read.facts,
        "optimisers": ["Adam(3e-4), state of the checkpoint's", f"Adam({optimizer.lr:g}), cosine"],
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
