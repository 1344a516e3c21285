"""Both stages of `word-vectors`, trained: the small ones to their strict minima, the large ones by Adam.

Skip-gram does not change when both its matrices are turned by the same rotation, so its minima lie in a flat family.
Neither the query nor any example's loss changes along it, and every vector that is solved for is at right angles to it:
the scores are defined, and Krylov methods never see those directions.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments.corpora import Texts, read_texts
from experiments.settings import Settings
from experiments.word_vectors.data import Drawing, Vocabulary, lines_of, tweets_of
from experiments.word_vectors.model import BagOfVectors, NegativeSampling, SkipGram
from stagetrace import Chain, Frozen, Query, Stage
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.stages.problem import Problem
from stagetrace.validation import minimise
from stagetrace.validation.handing_on import with_values

SHORTEST, LONGEST = 5, 200
"""Words of a line that is used: neither empty lines and headings nor what is longer than the rest by far."""


@final
@dataclass(frozen=True)
class Size:
    """How large it is, and how it is trained.

    words: of the vocabulary, at most. width: numbers a word. lines, tweets: trained on, drawn by the seed; None takes
    all. decay: weight decay of each stage. steps: of Adam, from `rate` down to 0, `batch` lines each (None: all).
    """

    words: int
    width: int
    lines: int | None
    tweets: int | None
    drawing: Drawing
    decay: tuple[float, float]
    steps: int
    rate: float
    batch: int | None = None
    dtype: torch.dtype = torch.float64


@final
@dataclass(frozen=True, eq=False)
class Corpora:
    """Lines and tweets over one vocabulary; each text beside its row in its tensors."""

    vocabulary: Vocabulary
    lines: TensorDataset
    line_texts: Texts
    tweets: TensorDataset
    test: TensorDataset
    test_texts: Texts


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """The chain and its query, the mean test loss; facts: how training went, as plain values."""

    chain: Chain
    query: Query
    facts: dict[str, dict[str, Any]]


def read(settings: Settings, size: Size, seed: int) -> Corpora:
    """The texts of both stages, drawn by the seed; the test tweets are all there are."""
    lines = read_texts(settings.folder("wikitext2"), "train").of_words(SHORTEST, LONGEST)
    lines = lines.drawn(_least(size.lines, settings.examples), seed)
    tweets = read_texts(settings.data / "gop_debate", "train").drawn(_least(size.tweets, settings.examples), seed)
    vocabulary = Vocabulary.of(lines.texts, tweets.texts, size.words)
    found, line_texts = lines_of(lines, vocabulary, size.drawing, seed)
    test, test_texts = tweets_of(read_texts(settings.data / "gop_debate", "test"), vocabulary)
    return Corpora(vocabulary, found, line_texts, tweets_of(tweets, vocabulary)[0], test, test_texts)


def trained(corpora: Corpora, size: Size, seed: int, folder: Path, progress: Progress, device: torch.device) -> Trained:
    """Both stages, trained now or kept in `folder` by an earlier call."""
    words, classes = len(corpora.vocabulary), int(corpora.tweets.tensors[1].max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        before = SkipGram(words, size.width).to(device, size.dtype)
        after = BagOfVectors(words, size.width, classes).to(device, torch.float64)  # its head is solved exactly
    first = Stage(
        "pretrain",
        model=before,
        objective=NegativeSampling(),
        data=corpora.lines,
        weight_decay=size.decay[0],
        batch_size=256 if size.batch else len(corpora.lines),
    )
    first, facts = _kept(folder, first, lambda: _pretrained(first, size, seed, progress))
    with torch.no_grad():
        after.vectors.weight.copy_(first.model.get_parameter("vectors.weight"))
    second = Stage(
        "finetune",
        model=after,
        objective=Classification(),
        data=corpora.tweets,
        weight_decay=size.decay[1],
        batch_size=len(corpora.tweets),
        link=Frozen("vectors"),
    )
    second, later = _kept(folder, second, lambda: _minimum(Chain(first, second)["finetune"], progress))
    later |= {"train": _fit(second.model, corpora.tweets), "test": _fit(second.model, corpora.test)}
    query = Query(corpora.test, batch_size=len(corpora.test))
    return Trained(Chain(first, second), query, {"pretrain": facts, "finetune": later})


def _pretrained(stage: Stage, size: Size, seed: int, progress: Progress) -> tuple[Stage, dict[str, Any]]:
    """By Adam, and then to the minimum where every step saw all lines."""
    stage = _by_adam(stage, size, seed, progress)
    problem = Chain(stage)[stage.name]
    if size.batch is None:
        return _minimum(problem, progress)
    facts = {"gradient_norm": float(problem.stationarity.norm()), "adam_steps": size.steps}
    return stage, facts


def _by_adam(stage: Stage, size: Size, seed: int, progress: Progress) -> Stage:
    """Adam on batches of lines, its rate going down to 0 by a cosine; the weight decay is part of the loss."""
    model, lines = with_values(stage, {}).model, stage.data
    optimizer = torch.optim.Adam(model.parameters(), lr=size.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, size.steps)
    device = next(model.parameters()).device
    with progress.task(f"training stage '{stage.name}'", size.steps, "steps") as advance:
        for rows in _batches(len(lines), size, seed):
            batch = [tensor[rows].to(device) for tensor in lines.tensors]
            optimizer.zero_grad()
            losses = stage.loss.losses(stage.loss.outputs(model, batch), batch)
            squares = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
            (losses.mean() + stage.weight_decay / 2 * squares).backward()
            optimizer.step()
            schedule.step()
            advance(1)
    return replace(stage, model=model.requires_grad_(True))


def _batches(lines: int, size: Size, seed: int) -> Iterator[Tensor]:
    """The rows of each step's batch: epoch by epoch in an order drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)
    batch, rows = min(size.batch or lines, lines), torch.empty(0, dtype=torch.int64)
    for _ in range(size.steps):
        if len(rows) < batch:
            rows = torch.randperm(lines, generator=generator)
        yield rows[:batch]
        rows = rows[batch:]


def _minimum(problem: Problem, progress: Progress) -> tuple[Stage, dict[str, Any]]:
    """The stage at its minimum."""
    minimum = minimise(problem, tolerance=1e-9, max_steps=500, cg_steps=500, strict=False, progress=progress)
    facts = {
        "gradient_norm": minimum.gradient_norm,
        "newton_steps": minimum.steps,
        "products": minimum.products,
    }
    return with_values(problem.stage, minimum.checked()), facts


def _kept(folder: Path, stage: Stage, train: Any) -> tuple[Stage, dict[str, Any]]:
    """The stage with its own values from `folder`, or trained and kept there."""
    path = folder / f"{stage.name}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        return with_values(stage, saved["values"]), saved["facts"]
    started = time.perf_counter()
    done, facts = train()
    values: Mapping[str, Tensor] = {name: value.detach() for name, value in done.model.named_parameters()}
    facts |= {"seconds": time.perf_counter() - started, "weight_decay": stage.weight_decay, "examples": len(stage.data)}
    facts["parameters"] = sum(value.numel() for value in values.values())
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"values": values, "facts": facts}, path)
    return done, facts


@torch.no_grad()
def _fit(model: nn.Module, tweets: TensorDataset) -> dict[str, float]:
    """Mean loss (nats), accuracy, and both for the constant that knows the labels' shares alone."""
    device = next(model.parameters()).device
    words, labels = (tensor.to(device) for tensor in tweets.tensors)
    logits = model(words).double()
    shares = labels.bincount().double() / len(labels)
    return {
        "loss": nn.functional.cross_entropy(logits, labels).item(),
        "accuracy": (logits.argmax(dim=1) == labels).double().mean().item(),
        "loss_of_shares": -(shares * shares.log()).nansum().item(),
        "largest_share": shares.max().item(),
    }


def _least(*counts: int | None) -> int | None:
    return min((count for count in counts if count is not None), default=None)
