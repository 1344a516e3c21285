"""Both stages of `language`: trained now, or found on disk from an earlier call."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.bert_and_gpt.training import by_adam
from experiments.checkpoints import Record, keep_state, saved_state, trained
from experiments.language.data import Corpora, Size
from experiments.language.models import Classifier, FullSoftmax, Head, LanguageModel
from experiments.language.text import BothWays, OfLabels, examples
from experiments.settings import Settings
from experiments.training import Training
from stagetrace import Chain, Frozen, Query, Stage
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.stages.data import Examples

STAGES = ("pretrain", "finetune")
CLASSES = 2


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """Both stages of one seed, the query, and how their training went."""

    read: Corpora
    chain: Chain
    query: Query
    states: Mapping[str, Any]
    said: Record


def stage_of_words(model: LanguageModel, read: Corpora, weight_decay: float, *, sampled: bool = False) -> Stage:
    """The first stage: the language model on the drawn sentences."""
    return Stage(
        "pretrain",
        model=model,
        objective=BothWays(sampled),
        data=examples(read.sentences),
        collate=read.reader,
        weight_decay=weight_decay,
        batch_size=128,
    )


def stage_of_tweets(model: Classifier, read: Corpora, weight_decay: float) -> Stage:
    """The second stage: the head alone is trained, all else is kept."""
    return Stage(
        "finetune",
        model=model,
        objective=OfLabels(),
        data=examples(read.tweets),
        collate=read.reader,
        weight_decay=weight_decay,
        link=Frozen("elmo"),
        batch_size=128,
    )


def head_stage(head: Head, features: Tensor, labels: Tensor, weight_decay: float) -> Stage:
    """The head by itself, on features that do not move: what fine-tuning trains, at a small part of the cost."""
    return Stage(
        "head",
        model=head,
        objective=Classification(),
        data=TensorDataset(features, labels),
        weight_decay=weight_decay,
        batch_size=max(1, len(labels)),
    )


def train_both(
    size: Size, pretraining: Training, finetuning: Training, settings: Settings, read: Corpora, progress: Progress
) -> Trained:
    """Train what is not yet in OUT/checkpoints."""
    folder, seed = settings.out / "checkpoints", settings.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        before = LanguageModel(size.shape, FullSoftmax(size.shape.projection, size.vocabulary)).to(settings.device)
        after = Classifier(size.shape, size.hidden, CLASSES).to(settings.device)
    first = stage_of_words(before, read, pretraining.weight_decay)
    given: Record = {"training": asdict(pretraining.seeded(seed)), **read.record(size)}
    plans = {"pretrain": pretraining.seeded(seed), "finetune": finetuning.seeded(seed)}
    work = lambda: _pretrain(first, plans["pretrain"], folder, read, progress)  # noqa: E731
    said = {"pretrain": trained(folder, "pretrain", before, given, work)}
    keep(after, before)
    second = stage_of_tweets(after, read, finetuning.weight_decay)
    given = {"training": asdict(finetuning.seeded(seed)), "pretrain": given}
    work = lambda: _finetune(second, plans["finetune"], folder, read, progress)  # noqa: E731
    said["finetune"] = trained(folder, "finetune", after, given, work)
    keep(after, before)
    states = {stage: saved_state(folder, stage) for stage in STAGES}
    return Trained(read, Chain(first, second), Query(examples(read.tests), batch_size=512), states, said)


def keep(after: Classifier, before: LanguageModel) -> None:
    """The classifier's network is the language model's, kept as it is."""
    after.elmo.load_state_dict(before.elmo.state_dict())
    after.elmo.requires_grad_(False)


def standardised(stage: Stage) -> tuple[Tensor, Tensor]:
    """Have the classifier standardise its features by those of the stage's own tweets; returns these and the labels."""
    _classifier(stage).standardise(features_of(stage, stage.data)[0])
    return features_of(stage, stage.data)


@torch.no_grad()
def features_of(stage: Stage, data: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """What the kept network makes of the tweets, `[n, features]`, and their labels."""
    model = _classifier(stage).eval()
    batches = Examples(data, 256, stage.collate, 0, stage.where)
    found = [(model.features(batch.content), batch.content["labels"]) for batch in batches.read(batches.plan())]
    return torch.cat([features for features, _ in found]), torch.cat([labels for _, labels in found])


def _classifier(stage: Stage) -> Classifier:
    assert isinstance(stage.model, Classifier)
    return stage.model


def _pretrain(stage: Stage, plan: Training, folder: Path, read: Corpora, progress: Progress) -> Record:
    started = time.perf_counter()
    keep_state(folder, stage.name, by_adam(stage, plan, progress))
    return {
        "plan": asdict(plan),
        "parameters": sum(p.numel() for p in stage.model.parameters() if p.requires_grad),
        "seconds": time.perf_counter() - started,
        "train": {"loss": _mean_loss(stage, stage.data)},
        "test": {"loss": _mean_loss(stage, examples(read.unseen))},
    }


def _finetune(stage: Stage, plan: Training, folder: Path, read: Corpora, progress: Progress) -> Record:
    started = time.perf_counter()
    features, labels = standardised(stage)
    head = _classifier(stage).head
    keep_state(folder, stage.name, by_adam(head_stage(head, features, labels, plan.weight_decay), plan, progress))
    seconds = time.perf_counter() - started
    tests = features_of(stage, examples(read.tests))
    return {
        "plan": asdict(plan),
        "parameters": sum(p.numel() for p in head.parameters()),
        "seconds": seconds,
        "train": _quality(head(features), labels),
        "test": _quality(head(tests[0]), tests[1]),
    }


def _quality(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean cross-entropy (nats), the share of right answers, and what the commoner answer alone would get right."""
    commoner = labels.bincount(minlength=CLASSES).max().item() / len(labels)
    right = (logits.argmax(dim=1) == labels).double().mean().item()
    return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": right, "commoner_class": commoner}


@torch.no_grad()
def _mean_loss(stage: Stage, data: Any) -> float:
    """Nats a word: the mean over sentences of each one's mean."""
    batches = Examples(data, 256, stage.collate, 0, stage.where)
    losses = [
        stage.loss.losses(stage.loss.outputs(stage.evaluated, batch.content), batch.content)
        for batch in batches.read(batches.plan())
    ]
    return torch.cat(losses).double().mean().item()
