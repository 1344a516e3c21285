"""The library's own estimators and the controls, each as a method of the benchmark."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from benchmarks.two_stage.chains import FINETUNE, PRETRAIN, Start, query_of_means
from experiments.estimators import alpha_of_steps, on_rows, shifted
from stagetrace import EKFAC, Chain, Direct, Frozen, GaussNewton, Identity, Lanczos, Proximal, Query, Shift, trace
from stagetrace.curvature import Auto
from stagetrace.errors import StagetraceWarning
from stagetrace.recording.recorded import Recorded
from stagetrace.replay import stopped_early
from stagetrace.solvers.base import Solver
from stagetrace.tracing.ensemble import order_weights
from stagetrace.validation import BM25, EmbeddingSimilarity, Estimator, GradientDot, Influence, Random, SingleStage
from stagetrace.validation.fits.optimizers import SGD

NATS, NONE = "nats", "none"
DAMPED = shifted(0.1, max_steps=40)
"""Gauss-Newton + 0.1, as in the experiments: a damping that was picked for its ranking."""
STRETCHES = 6
"""As in `experiments/smoothness.py`."""
EXAMPLES, FEW = 256, 64
"""That a curvature is averaged over: of `phi_t`, and of the others, which are solved twice. There are nine right-hand
sides."""


@final
@dataclass(frozen=True, eq=False)
class Traced:
    """A chain after its recorded training: what a method is given."""

    start: Start
    chain: Chain

    def idealised(self, alpha: float | None = None) -> Chain:
        """Both stages taken for minima, the second pulled towards the first; what LoRA kept is kept.

        alpha: of the pull; None takes what the fine-tuning's steps amount to, `1 / (2 sum of rates)`.
        """
        first, last = self.chain.bound_stages
        shared = last.inherited_from | last.anchored_to
        alpha = _alpha(self.start) if alpha is None else alpha
        link = Proximal(shared, alpha=alpha) if last.anchored_to else Frozen(shared)
        return Chain(replace(first.stage, link=None), replace(last.stage, link=link))

    def hybrid(self) -> Chain:
        """The first stage taken for a minimum (or one that stopped early), the second through its recorded steps."""
        first, last = self.chain.stages
        return Chain(replace(first, link=None), last)

    def stopped(self, stretches: int) -> Solver:
        """`phi_t` for the first stage, with times and metrics of its recording."""
        bound = Chain(replace(self.chain.stages[0], link=None))[PRETRAIN]
        return stopped_early(bound, self.recording, segments=stretches)

    @property
    def recording(self) -> Recorded:
        found = self.chain[PRETRAIN].recording
        assert isinstance(found, Recorded)
        return found


Effects = Callable[[Traced], Tensor]
"""`[queries, n]`: the predicted change of each query's loss when that example is left out; negative = it helps."""


@final
@dataclass(frozen=True)
class Method:
    """unit: "nats", or "none" where only the order means something. texts: whether it needs examples that are texts."""

    name: str
    unit: str
    effects: Effects
    texts: bool = False

    @property
    def file(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.name.lower().replace(",", "").replace(" + ", "-"))


def methods() -> list[Method]:
    """In the order of the table; those that train in other orders are in `other_orders.py`."""
    damped: Any = {"curvature": GaussNewton(examples=FEW), "solver": DAMPED}
    default: Any = {"curvature": Auto(examples=FEW), "solver": Lanczos(max_steps=40)}
    return [
        Method("exact, the recorded steps", NATS, lambda t: influence(t.chain, t.start.query)),
        Method("exact fine-tuning, phi_t", NATS, partial(_early, stretches=1)),
        Method(f"exact fine-tuning, phi_t in {STRETCHES} stretches", NATS, partial(_early, stretches=STRETCHES)),
        Method("exact fine-tuning, Gauss-Newton + 0.1", NATS, lambda t: influence(t.hybrid(), t.start.query, **damped)),
        Method("exact fine-tuning, EK-FAC + 0.1", NATS, _approximated),
        Method(
            "idealised, Gauss-Newton + 0.1, alpha of the steps",
            NATS,
            lambda t: influence(t.idealised(), t.start.query, **damped),
        ),
        Method("idealised, the default", NATS, lambda t: influence(t.idealised(0.01), t.start.query, **default)),
        Method("idealised, identity", NONE, _by(Influence(Identity()), ideal=True)),
        Method(
            "single-stage, Gauss-Newton + 0.1",
            NATS,
            _by(SingleStage(GaussNewton(examples=FEW), DAMPED), ideal=True),
        ),
        Method("gradient dot product", NONE, _by(GradientDot())),
        Method("embedding similarity", NONE, _similarity),
        Method("BM25", NONE, _words, texts=True),
        Method("loss", NONE, _loss),
        Method("random", NONE, lambda t: Random(t.start.seed).removal_effects(t.chain, t.start.query, PRETRAIN)),
    ]


def influence(chain: Chain, query: Query, **settings: Any) -> Tensor:
    """`removal_effect` of the pretraining examples by `stagetrace.trace`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StagetraceWarning)  # what is doubted is what is measured here
        return trace(chain, query, of=PRETRAIN, **settings)[PRETRAIN].removal_effect


def _early(traced: Traced, stretches: int) -> Tensor:
    settings: Mapping[str, Any] = {
        "curvature": {PRETRAIN: GaussNewton(examples=EXAMPLES)},
        "solver": {PRETRAIN: traced.stopped(stretches)},
    }
    return influence(traced.hybrid(), traced.start.query, **settings)


def _approximated(traced: Traced) -> Tensor:
    """As with Gauss-Newton, the curvature of the first stage by EK-FAC of more examples, in closed form."""
    settings: Mapping[str, Any] = {
        "curvature": {PRETRAIN: EKFAC(examples=EXAMPLES)},
        "solver": {PRETRAIN: Direct(0.1, Shift)},
    }
    return influence(traced.hybrid(), traced.start.query, **settings)


def _by(estimator: Estimator, *, ideal: bool = False) -> Effects:
    def effects(traced: Traced) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StagetraceWarning)
            chain = traced.idealised() if ideal else traced.chain
            return estimator.removal_effects(chain, traced.start.query, PRETRAIN)

    return effects


def _similarity(traced: Traced) -> Tensor:
    return _by_tests(EmbeddingSimilarity(traced.start.embedding), traced)


def _words(traced: Traced) -> Tensor:
    assert traced.start.text is not None
    return _by_tests(on_rows(BM25(traced.start.text)), traced)


def _by_tests(estimator: Estimator, traced: Traced) -> Tensor:
    """Of an estimator that looks at each test example: the mean over all, then the single ones."""
    query = replace(traced.start.tests, reduction="none")
    every = estimator.removal_effects(traced.chain, query, PRETRAIN)
    return torch.stack([every.mean(dim=0), *every[list(traced.start.single)]])


def _loss(traced: Traced) -> Tensor:
    """What the pretrained model finds hardest is taken to harm most, whatever the query."""
    risk = traced.chain[PRETRAIN].risk
    with torch.no_grad():
        batches = risk.read(risk.examples.batch_indices())
        losses = torch.cat([risk.losses(risk.trained_values, risk.inherited_values, batch) for batch in batches])
    return -losses.double().expand(len(traced.start.queries), -1)


def _alpha(start: Start) -> float:
    """The pull that the fine-tuning's steps amount to."""
    fit = start.steps(FINETUNE)
    time = sum(map(fit.rate_at, range(fit.steps)))
    if isinstance(fit.optimizer, SGD):
        time /= 1 - fit.optimizer.momentum
    return alpha_of_steps(time / fit.steps, fit.steps)


def mean_query(start: Start) -> Query:
    """The mean test loss alone."""
    return query_of_means(start.chain.stages[-1], start.tests, [range(len(start.tests.data))])


def exact_in(start: Start, folder: Path, order: int) -> Tensor:
    """The exact derivative through a training with batches in another order; of the mean query, `[1, n]`."""
    return influence(start.recorded(folder, order), mean_query(start))


def averaged(each: Sequence[Tensor]) -> Tensor:
    """The mean over orders, as `trace` takes it where it trains in several."""
    values = torch.stack(list(each))
    return (order_weights(values) * values).sum(dim=0)
