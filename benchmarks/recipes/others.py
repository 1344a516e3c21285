"""Recipes of other packages: sentence-transformers, and Lightning. Left out where the package is not installed."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.recipes import tiny
from benchmarks.recipes.made import Made, moving
from benchmarks.recipes.trainers import Recipe
from stagetrace import Chain, Frozen, Query, Recording, Stage, Unrolled, hf, trace
from stagetrace.objectives import BinaryClassification, Classification, Contrastive, Grouped

PAIRS = [
    {"anchor": one, "positive": other, "negative": third, "score": 0.1 * place}
    for place, (one, other, third) in enumerate(
        zip(tiny.TEXTS, tiny.TEXTS[::-1], tiny.TEXTS[3:] + tiny.TEXTS[:3], strict=True)
    )
]
TOGETHER = 4
"""Rows of a group: a batch of the training."""


def saved(folder: Path, model: Any) -> None:
    """A model and a tokenizer without a chat template, by which sentence-transformers would read texts."""
    tokens = tiny.tokenizer()
    tokens.chat_template = None
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


def encoder(folder: Path) -> Any:
    """A model of sentence-transformers: a BERT, and the mean over its tokens."""
    package = import_module("sentence_transformers")
    modules = import_module("sentence_transformers.models")
    saved(folder / "bert", tiny.bert("BertModel"))
    body = modules.Transformer(str(folder / "bert"))
    pooling = modules.Pooling(body.get_word_embedding_dimension())
    return package.SentenceTransformer(modules=[body, pooling], device="cpu").double()


def in_groups(dataset: Any, batch_size: int, **settings: Any) -> Any:
    """A batch sampler whose batches are the same in each epoch: rows that lie together."""
    del settings
    return [list(range(start, start + batch_size)) for start in range(0, len(dataset), batch_size)]


def sentences(folder: Path, columns: Sequence[str], loss: str, **settings: Any) -> Any:
    """A finished SentenceTransformerTrainer on some columns of the pairs."""
    package, losses = import_module("sentence_transformers"), import_module("sentence_transformers.losses")
    model = encoder(folder)
    made = package.SentenceTransformerTrainer(
        model=model,
        args=tiny.arguments(
            package.SentenceTransformerTrainingArguments, folder, batch_sampler=in_groups, bf16=False, **settings
        ),
        train_dataset=datasets.Dataset.from_list([{name: row[name] for name in columns} for row in PAIRS]),
        loss=getattr(losses, loss)(model),
    )
    made.train()
    made.model.eval()
    return made


def mean_over(trainer: Any, groups: Sequence[Sequence[int]]) -> Callable[[], Tensor]:
    """The mean of the trainer's losses of some batches."""
    rows = trainer.train_dataset
    batches = [trainer.data_collator([rows[index] for index in group]) for group in groups]
    return lambda: torch.stack([trainer.compute_loss(trainer.model, dict(batch)) for batch in batches]).mean()


def embedded(model: nn.Module, rows: Any) -> Tensor:
    return model(dict(rows))["sentence_embedding"]


def tokenised(model: Any, rows: Sequence[Any], *columns: str) -> list[dict[str, Tensor]]:
    """For each column of texts what the model reads of them, tensors `[rows, length]`."""
    found = [model.preprocess([row[name] for row in rows]) for name in columns]
    return [{name: value for name, value in each.items() if isinstance(value, Tensor)} for each in found]


def ranking(folder: Path) -> Made:
    """MultipleNegativesRankingLoss on groups that do not change, with a hard negative for each pair."""
    columns = ("anchor", "positive", "negative")
    trainer = sentences(folder, columns, "MultipleNegativesRankingLoss")

    def group(rows: list[Any]) -> tuple[Any, Any]:
        texts = [row["anchor"] for row in rows], [row[name] for name in columns[1:] for row in rows]
        (anchors,), (others,) = (tokenised(trainer.model, [{"text": text} for text in each], "text") for each in texts)
        return anchors, others

    data = Grouped(trainer.train_dataset, TOGETHER, collate=group)
    objective = Contrastive(temperature=1 / 20, embed=embedded)
    stage = Stage("pairs", model=trainer.model, objective=objective, data=data, collate=Grouped.padded)
    return Made(Chain(stage), mean_over(trainer, data.groups), trainer.model)


def squared_errors(model: nn.Module, batch: Any) -> Tensor:
    """Of the cosine of two texts, as CosineSimilarityLoss has them."""
    *texts, score = batch
    one, other = (embedded(model, each) for each in texts)
    return (F.cosine_similarity(one, other) - score).square()


def similarity(folder: Path) -> Made:
    """CosineSimilarityLoss: a pair of texts, and how alike they are."""
    trainer = sentences(folder, ("anchor", "positive", "score"), "CosineSimilarityLoss")

    def collate(rows: list[Any]) -> list[Any]:
        scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
        return [*tokenised(trainer.model, rows, "anchor", "positive"), scores]

    stage = Stage("pairs", model=trainer.model, objective=squared_errors, data=trainer.train_dataset, collate=collate)
    return Made(Chain(stage), mean_over(trainer, [range(len(PAIRS))]), trainer.model)


def cross_encoder(folder: Path) -> Made:
    """BinaryCrossEntropyLoss of a CrossEncoder: the model inside is one of transformers."""
    package, losses = (import_module(f"sentence_transformers{name}") for name in ("", ".cross_encoder.losses"))
    saved(folder / "bert", tiny.bert("BertForSequenceClassification", num_labels=1))
    model = package.CrossEncoder(str(folder / "bert"), num_labels=1, device="cpu").double()
    rows = [{"sentence1": r["anchor"], "sentence2": r["positive"], "label": place % 2} for place, r in enumerate(PAIRS)]
    trainer = package.CrossEncoderTrainer(
        model=model,
        args=tiny.arguments(package.CrossEncoderTrainingArguments, folder, bf16=False),
        train_dataset=datasets.Dataset.from_list(rows),
        loss=losses.BinaryCrossEntropyLoss(model),
    )
    trainer.train()
    trainer.model.eval()
    inside = trainer.model.model
    stage = hf.stage("pairs", inside, rows, tokenizer=trainer.model.tokenizer, objective=BinaryClassification())
    return Made(Chain(stage), mean_over(trainer, [range(len(rows))]), inside)


INPUTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.randint(0, 3, (12,), generator=torch.Generator().manual_seed(1))


def fitted(net: nn.Module, data: Any, recording: Recording | None = None, weights: Tensor | None = None) -> Any:
    """A LightningModule around a network, after `fit`; weights: of the examples, each in its batch's mean."""
    lightning: Any = import_module("lightning")

    class Fitted(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net(inputs)

        def training_step(self, batch: Any, number: int) -> Tensor:
            inputs, labels = batch
            losses = F.cross_entropy(self(inputs), labels, reduction="none")
            return (losses if weights is None else weights[4 * number : 4 * number + 4] * losses).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.05)

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callbacks = [] if recording is None else [recording.callback()]
    loader, module = DataLoader(data, 4), Fitted()
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, **off)
    trainer.fit(module, loader if recording is None else recording.loader(loader))
    return module.eval()


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def lightning_head(folder: Path) -> Made:
    """Two LightningModules: the second has a new head on the first one's body, which it keeps."""
    del folder
    data, others = TensorDataset(INPUTS, LABELS), TensorDataset(INPUTS, LABELS % 2)
    first = fitted(network(0), data)
    body = tiny.apart(first.net[0]).requires_grad_(False)
    second = fitted(nn.Sequential(body, nn.Tanh(), nn.Linear(5, 2).double()), others)
    before = Stage("body", model=first, objective=Classification(), data=data)
    link = Frozen("net.0")
    chain = Chain(before, Stage("head", model=second, objective=Classification(), data=others, link=link))
    held = {f"net.0.{name}": parameter for name, parameter in second.net[0].named_parameters()}
    return Made(chain, lambda: second.training_step((INPUTS, LABELS % 2), 0), second, moving(held))


def lightning_recorded(folder: Path) -> Made:
    """A recorded `fit`: its scores beside those of `fit` done again with an example's weight moved."""
    data, step = TensorDataset(INPUTS, LABELS), 1e-5
    module = fitted(network(0), data, Recording(folder / "recording"))
    link = Unrolled(recording=folder / "recording")
    stage = Stage("fit", model=module, objective=Classification(), data=data, link=link)
    asked = TensorDataset(INPUTS[:3], (LABELS[:3] + 1) % 3)

    def again(example: int, by: float) -> float:
        weights = torch.ones(len(data), dtype=torch.float64)
        weights[example] += by
        return float(F.cross_entropy(fitted(network(0), data, None, weights)(asked[:][0]), asked[:][1]))

    def scores() -> Mapping[str, Tensor]:
        ours = trace(Chain(stage), Query(asked))["fit"].values
        slopes = [(again(index, step) - again(index, -step)) / (2 * step) for index in range(len(data))]
        return {"ours": ours, "trained again": len(data) * torch.tensor(slopes, dtype=torch.float64)}

    return Made(Chain(stage), partial(module.training_step, (INPUTS, LABELS), 0), module, scores=scores)


EVERY: Mapping[str, Mapping[str, Recipe]] = {
    "sentence_transformers": {
        "sentence-transformers: multiple negatives, fixed groups": ranking,
        "sentence-transformers: cosine similarity": similarity,
        "sentence-transformers: cross-encoder": cross_encoder,
    },
    "lightning": {
        "Lightning: a head on a kept body": lightning_head,
        "Lightning: a recorded fit": lightning_recorded,
    },
}
"""Package -> its recipes."""


PACKAGES = ("transformers", "trl", "peft", "sentence-transformers", "lightning")


def packages() -> list[dict[str, str]]:
    """What recipes were made with."""
    return [{"package": name, "version": version(name)} for name in PACKAGES if find_spec(name.replace("-", "_"))]


def installed(say: Callable[[str], None]) -> dict[str, Recipe]:
    """The recipes of the packages that there are; of others a line is said."""
    found: dict[str, Recipe] = {}
    for package, recipes in EVERY.items():
        if find_spec(package):
            found |= recipes
        else:
            name = package.replace("_", "-")
            say(f"{name} is not installed, so its recipes are left out ({len(recipes)}): pip install {name}")
    return found
