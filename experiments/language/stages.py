"""Both stages of `language`: trained now, or found on disk from an earlier call."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from experiments.checkpoints import Checkpoints, Record
from experiments.language.data import Size, record
from experiments.language.models import Classifier, FullSoftmax, Head, LanguageModel
from experiments.language.text import BothWays, OfLabels, examples
from experiments.protocol import Prepared
from experiments.settings import Settings
from experiments.texts import Corpora
from experiments.training import Training, count_of, quality, train_stage
from stagetrace import Chain, Frozen, Query, Stage
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.stages.data import Examples

CLASSES = 2


def stage_of_words(model: LanguageModel, read: Corpora, weight_decay: float, *, sampled: bool = False) -> Stage:
    """The first stage: the language model on the drawn sentences."""
    return Stage(
        "pretrain",
        model=model,
        objective=BothWays(sampled),
        data=examples(read.general),
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
    data, size = TensorDataset(features, labels), max(1, len(labels))
    return Stage("head", model=head, objective=Classification(), data=data, weight_decay=weight_decay, batch_size=size)


def prepare(
    size: Size, plans: Mapping[str, Training], settings: Settings, read: Corpora, progress: Progress
) -> Prepared:
    """Train what is not yet in OUT/checkpoints."""
    store, plans = Checkpoints(settings.out / "checkpoints"), {n: p.seeded(settings.seed) for n, p in plans.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        before = LanguageModel(size.shape, FullSoftmax(size.shape.projection, size.vocabulary)).to(settings.device)
        after = Classifier(size.shape, size.hidden, CLASSES).to(settings.device)
    first = stage_of_words(before, read, plans["pretrain"].weight_decay)
    given = {"training": asdict(plans["pretrain"]), **record(read, size)}
    facts = {
        "pretrain": store.trained(
            "pretrain", before, given, lambda: _pretrain(first, plans["pretrain"], read, progress)
        )
    }
    keep(after, before)
    second = stage_of_tweets(after, read, plans["finetune"].weight_decay)
    given = {"training": asdict(plans["finetune"]), "pretrain": given}
    facts["finetune"] = store.trained(
        "finetune", after, given, lambda: _finetune(second, plans["finetune"], read, progress)
    )
    keep(after, before)
    states = {stage: store.adam(stage) for stage in plans}
    query = Query(examples(read.tests), batch_size=512)
    return Prepared(Chain(first, second), query, facts, states, read)


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
    found = [
        (model.features(batch.content), batch.content["labels"]) for batch in batches.read(batches.batch_indices())
    ]
    return torch.cat([features for features, _ in found]), torch.cat([labels for _, labels in found])


def _classifier(stage: Stage) -> Classifier:
    assert isinstance(stage.model, Classifier)
    return stage.model


def _pretrain(stage: Stage, plan: Training, read: Corpora, progress: Progress) -> Record:
    return {
        "adam": train_stage(stage, plan, progress),
        "plan": asdict(plan),
        "parameters": count_of(stage.model),
        "train": {"loss": _mean_loss(stage, stage.data)},
        "test": {"loss": _mean_loss(stage, examples(read.unseen))},
    }


def _finetune(stage: Stage, plan: Training, read: Corpora, progress: Progress) -> Record:
    features, labels = standardised(stage)
    head = _classifier(stage).head
    state = train_stage(head_stage(head, features, labels, plan.weight_decay), plan, progress)
    parts = {"train": (features, labels), "test": features_of(stage, examples(read.tests))}
    commoner = {part: own.bincount(minlength=CLASSES).max().item() / len(own) for part, (_, own) in parts.items()}
    return {
        "adam": state,
        "plan": asdict(plan),
        "parameters": count_of(head),
        **{part: quality(head(x), y) | {"commoner_class": commoner[part]} for part, (x, y) in parts.items()},
    }


@torch.no_grad()
def _mean_loss(stage: Stage, data: Any) -> float:
    """Nats a word: the mean over sentences of each one's mean."""
    batches, loss = Examples(data, 256, stage.collate, 0, stage.where), stage.loss
    read = (batch.content for batch in batches.read(batches.batch_indices()))
    return torch.cat([loss.losses(loss.outputs(stage.evaluated, each), each) for each in read]).double().mean().item()
