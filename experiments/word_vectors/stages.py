"""Both stages of `word-vectors`, trained: the small ones to their strict minima, the large ones by Adam.

Skip-gram does not change when both its matrices are turned by the same rotation, so its minima lie in a flat family.
Neither the query nor any example's loss changes along it, and every vector that is solved for is at right angles to it:
the scores are defined, and Krylov methods never see those directions.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from experiments.checkpoints import Checkpoints, Record, digest
from experiments.protocol import Prepared
from experiments.settings import Settings
from experiments.texts import Corpora, read_texts
from experiments.training import Training, count_of, minimise, quality
from experiments.word_vectors.data import Drawing, Vocabulary, lines_of, tweets_of
from experiments.word_vectors.model import BagOfVectors, NegativeSampling, SkipGram
from stagetrace import Chain, Frozen, Query, Stage
from stagetrace.objectives import Classification
from stagetrace.progress import Progress
from stagetrace.validation.newton import minimise as minimise_stage

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


def prepare(settings: Settings, size: Size, store: Checkpoints, progress: Progress) -> Prepared:
    """Both stages, trained now or found in the store, on texts drawn by the seed; the test tweets are all there are."""
    seed, folder = settings.seed, settings.data / "gop_debate"
    general = read_texts(settings.folder("wikitext2"), "train").of_words(SHORTEST, LONGEST)
    general, tweets = (
        texts.drawn(settings.most(count or len(texts)), seed)
        for texts, count in ((general, size.lines), (read_texts(folder, "train"), size.tweets))
    )
    vocabulary = Vocabulary.of(general.texts, tweets.texts, size.words)
    lines, general = lines_of(general, vocabulary, size.drawing, seed)
    (labelled, tweets), (test, tests) = (tweets_of(t, vocabulary) for t in (tweets, read_texts(folder, "test")))
    words, classes = len(vocabulary), int(labelled.tensors[1].max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        before = SkipGram(words, size.width).to(settings.device, size.dtype)
        after = BagOfVectors(words, size.width, classes).to(
            settings.device, torch.float64
        )  # its head is solved exactly
    first = Stage(
        "pretrain",
        model=before,
        objective=NegativeSampling(),
        data=lines,
        weight_decay=size.decay[0],
        batch_size=256 if size.batch else len(lines),
    )

    def pretrain() -> Record:
        """By Adam, and then to the minimum where every step saw all lines."""
        _by_adam(first, size, seed, progress)
        if size.batch is None:
            return _to_minimum(Chain(first), progress)
        return {"gradient_norm": float(Chain(first).last.stationarity.norm()), "adam_steps": size.steps}

    facts = {"pretrain": _trained(store, first, size, pretrain)}
    with torch.no_grad():
        after.vectors.weight.copy_(before.vectors.weight)
    second = Stage(
        "finetune",
        model=after,
        objective=Classification(),
        data=labelled,
        weight_decay=size.decay[1],
        batch_size=len(labelled),
        link=Frozen("vectors"),
    )
    facts["finetune"] = _trained(store, second, size, lambda: _to_minimum(Chain(first, second), progress))
    facts["finetune"] |= {"train": _fit(after, labelled), "test": _fit(after, test)}
    query, corpora = Query(test, batch_size=len(test)), Corpora(general, tests, tweets, tests, vocabulary)
    return Prepared(Chain(first, second), query, facts, data=corpora)


def _trained(store: Checkpoints, stage: Stage, size: Size, train: Callable[[], Record]) -> Record:
    """The stage's model trained in place, or found; and how it went."""
    start = digest(*stage.model.state_dict().values())
    given = {**asdict(size), "dtype": str(size.dtype), "data": digest(*stage.data.tensors), "start": start}
    facts = store.trained(stage.name, stage.model, given, train)
    counts = {"examples": len(stage.data), "parameters": count_of(stage.model)}
    return {**facts, "weight_decay": stage.weight_decay, **counts}


def _by_adam(stage: Stage, size: Size, seed: int, progress: Progress) -> None:
    """Adam on full batches of lines; the weight decay is a term of the loss."""
    model, lines = stage.model, stage.data
    device, decay = next(model.parameters()).device, stage.weight_decay
    assert isinstance(decay, (int, float))

    def loss(rows: list[int]) -> Tensor:
        batch = [tensor[torch.tensor(rows)].to(device) for tensor in lines.tensors]
        squares = torch.stack([parameter.square().sum() for parameter in model.parameters()]).sum()
        return stage.loss.losses(stage.loss.outputs(model, batch), batch).mean() + decay / 2 * squares

    plan = Training(size.steps, size.rate, min(size.batch or len(lines), len(lines)), seed=seed)
    full = (rows for rows in plan.batches(len(lines)) if len(rows) == plan.batch)
    with progress.task(f"training stage '{stage.name}'", size.steps, "steps") as advance:
        minimise(model, plan, islice(full, size.steps), size.steps, loss, advance)


def _to_minimum(chain: Chain, progress: Progress) -> Record:
    """Bring the chain's last stage to its minimum, in place."""
    options: Any = {"tolerance": 1e-9, "max_steps": 500, "cg_steps": 500, "strict": False}
    minimum = minimise_stage(chain.last, **options, progress=progress)
    chain.last.stage.model.load_state_dict(minimum.checked(), strict=False)
    facts = {"gradient_norm": minimum.gradient_norm, "newton_steps": minimum.steps}
    return {**facts, "products": minimum.products}


@torch.no_grad()
def _fit(model: nn.Module, tweets: TensorDataset) -> dict[str, float]:
    """Mean loss (nats), accuracy, and both for the constant that knows the labels' shares alone."""
    words, labels = (tensor.to(next(model.parameters()).device) for tensor in tweets.tensors)
    shares = labels.bincount().double() / len(labels)
    constant = {"loss_of_shares": -(shares * shares.log()).nansum().item(), "largest_share": shares.max().item()}
    return quality(model(words).double(), labels) | constant
