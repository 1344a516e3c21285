"""What a score costs at the paper's size: 93.6 million parameters, initial weights, sentences of 25 words.

The time and the memory of a score do not depend on the values of the weights, so the network is not trained. All is
counted: the fine-tuning stage's adjoint, the step back through the network, the pretraining stage's solve, and the
scores. What the arithmetic alone would take stands beside it: floating-point operations as PyTorch counts them, at the
rate of the LSTMs' own matrix product.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments import records
from experiments.estimators import shifted
from experiments.language.data import Size, corpora
from experiments.language.elmo import Shape
from experiments.language.models import Classifier, LanguageModel, SampledSoftmax
from experiments.language.stages import CLASSES, head_stage, stage_of_tweets, stage_of_words, standardised
from experiments.language.text import examples, lengths
from experiments.records import Record
from experiments.settings import Settings
from experiments.texts import Corpora
from experiments.training import Training, train_stage
from stagetrace import Chain, GaussNewton, Query, trace
from stagetrace.curvature.mean import MeanCurvature
from stagetrace.curvature.operator import DiagonalOperator, LinearOperator
from stagetrace.curvature.plan import Plan
from stagetrace.progress import Progress
from stagetrace.stages.bound import BoundStage

PAPER = Size(
    shape=Shape(),
    words=(24, 26),
    sentences=1000,
    tweets=32,
    tests=1,
    vocabulary=10_000,
    letters=50,
    lower=False,
)
NEGATIVES = 1024
HEAD = Training(epochs=20, rate=1e-3, batch=32, weight_decay=1e-2)
SENTENCES, TWEETS = 8, 16
"""Examples in the curvature of each stage."""
DAMPING = 0.1
STEPS = 6
RESIDUAL = 1e-2
BASIS = 8 * 2**30
"""Bytes for the solver's basis: a vector of this network takes 0.4 GB."""


@final
@dataclass(frozen=True)
class KeptGaussNewton:
    """Gauss-Newton of a few examples by kept graphs, without trying which way of multiplying is best.

    The trials take longer than all products of this solve: they differentiate the network twice, several times over.
    """

    few: GaussNewton

    def operator(self, bound: BoundStage) -> LinearOperator:
        indices = self.indices(bound)
        plan = Plan("GaussNewton", "retained graph", len(indices), bytes_per_example=0, cached_bytes=0, missing=None)
        return MeanCurvature(bound.risk, indices, plan) + DiagonalOperator(bound.penalty)

    def indices(self, bound: BoundStage) -> Sequence[int]:
        return self.few.indices(bound)


def run(settings: Settings, progress: Progress, write: Callable[[Record], object]) -> None:
    """Build, trace, and write the numbers as they come."""
    started = time.perf_counter()
    read = corpora(PAPER, settings)
    chain, head_seconds = _built(read, settings, progress)
    first = chain["pretrain"].stage
    elmo = first.model.get_submodule("elmo")
    found: Record = {
        "parameters": {
            "shared": sum(p.numel() for p in elmo.parameters() if p.requires_grad),
            "pretrain": chain["pretrain"].trained.size,
            "finetune": chain["finetune"].trained.size,
        },
        "sentences": len(read.general),
        "words_a_sentence": sum(lengths(read.general.texts, read.reader)) / len(read.general) - 2,
        "negatives": NEGATIVES,
        "curvature_examples": {"pretrain": SENTENCES, "finetune": TWEETS},
        "forward": _forward(chain),
        "product_rate_flops": _rate(PAPER.shape),
        "seconds": {"building": time.perf_counter() - started - head_seconds, "training the head": head_seconds},
    }
    write(found)
    curvature = {
        stage: KeptGaussNewton(GaussNewton(few, settings.seed)) for stage, few in found["curvature_examples"].items()
    }
    solver = {
        "pretrain": shifted(DAMPING, rtol=RESIDUAL, max_steps=STEPS, memory=BASIS),
        "finetune": shifted(DAMPING, rtol=1e-4, max_steps=100),
    }
    before = time.perf_counter()
    query = Query(examples(read.tests), batch_size=1)
    result = trace(chain, query, curvature=curvature, solver=solver, of="pretrain", progress=progress)
    seconds = time.perf_counter() - before
    found["seconds"] |= {"tracing": result.statistics["seconds"], "all of trace": seconds}
    values = result["pretrain"].values
    found |= {
        "seconds_an_example": seconds / len(values),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **records.of_trace(result, curvature, solver),
        "statistics": result.statistics,
        "mean_absolute_score": values.abs().mean().item(),
    }
    write(found)


def _built(read: Corpora, settings: Settings, progress: Progress) -> tuple[Chain, float]:
    """The chain, its network drawn by the seed and its head trained; and the seconds that the head took."""
    shape = PAPER.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        softmax = SampledSoftmax(shape.projection, PAPER.vocabulary, NEGATIVES, settings.seed)
        before = LanguageModel(shape, softmax).to(settings.device)
        after = Classifier(shape, PAPER.hidden, CLASSES).to(settings.device)
    after.elmo = before.elmo  # the same tensors: a copy would take 0.4 GB
    first, second = stage_of_words(before, read, 0.0, sampled=True), stage_of_tweets(after, read, HEAD.weight_decay)
    started = time.perf_counter()
    features, labels = standardised(second)
    train_stage(head_stage(after.head, features, labels, HEAD.weight_decay), HEAD.seeded(settings.seed), progress)
    return Chain(first, second), time.perf_counter() - started


def _forward(chain: Chain) -> dict[str, float]:
    """Seconds and floating-point operations of one forward pass over one sentence, kernels as in scoring."""
    risk = chain["pretrain"].risk
    batch = next(iter(risk.read(risk.examples.batch_indices()[:1])))
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            risk.losses(risk.trained_values, risk.inherited_values, batch)
        started = time.perf_counter()
        risk.losses(risk.trained_values, risk.inherited_values, batch)
    seconds = time.perf_counter() - started
    return {"seconds": seconds / len(batch), "flops": counter.get_total_flops() / len(batch)}


def _rate(shape: Shape, batch: int = 128) -> float:
    """Floating-point operations a second of the product that an LSTM does at each word, the best of some."""
    states, weight = torch.randn(batch, shape.projection), torch.randn(4 * shape.cells, shape.projection)
    rates = list[float]()
    for _ in range(10):
        started = time.perf_counter()
        torch.nn.functional.linear(states, weight)
        rates.append(2 * batch * weight.numel() / (time.perf_counter() - started))
    return max(rates)
