"""`word-vectors`: word vectors of skip-gram with negative sampling, kept by a classifier of tweets.

pull PULL   both stages solved again to a gradient norm of 1e-9, each with a pull of `PULL / 2 |x - trained|^2`; the
            prediction is the solve damped by as much
adam        both stages trained on by Adam, several batch orders: a truth with noise, and its reliability

A larger size is scored, not validated (`large.py`). Everything was chosen on another seed (100).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from experiments.checkpoints import Checkpoints
from experiments.estimators import IDENTITY, OURS, controls, shifted
from experiments.protocol import Experiment, Prepared, Run, Variant
from experiments.records import Record
from experiments.settings import Settings
from experiments.word_vectors.data import Drawing
from experiments.word_vectors.large import scored_large
from experiments.word_vectors.lines import ends_of
from experiments.word_vectors.model import embedded
from experiments.word_vectors.stages import Size, prepare
from stagetrace import GaussNewton, Hessian, Identity, Lanczos
from stagetrace.progress import Progress
from stagetrace.validation import (
    Adam,
    Estimator,
    GroupRemovals,
    Influence,
    RandomRemovals,
    RemovalPlan,
    Resolve,
    SingleStage,
    Steps,
    TopRemovals,
)

SMALL = Size(1500, 8, 1500, 2000, Drawing(pairs=16, negatives=3), (2e-4, 1e-3), steps=500, rate=0.03)
COUNT, FEW = 20, 10
PULLS = (1e-3, 1e-4)
"""A quarter and a fortieth of the largest curvature of the first stage."""
AGAIN = {"pretrain": Steps(Adam(1e-3), 100, 256), "finetune": Steps(Adam(1e-3), 100, 256)}
ORDERS = 3


def variants(prepared: Prepared, settings: Settings) -> Iterator[Variant]:
    """How stages are trained again, and what is taken out."""
    seed, (strong, weak) = settings.seed, PULLS
    singles = [TopRemovals(COUNT, by=0.1), TopRemovals(COUNT), RandomRemovals(COUNT, seed=seed)]
    groups = [GroupRemovals(0.1, COUNT, seed=seed), GroupRemovals(0.5, COUNT, seed=seed)]
    few = [TopRemovals(FEW), GroupRemovals(0.1, FEW, seed=seed)]
    yield variant(f"pull {strong:g}", prepared, settings, strong, _exactly(strong), [*singles, *groups])
    yield variant(f"pull {weak:g}", prepared, settings, weak, _exactly(weak), singles)
    yield variant("adam", prepared, settings, strong, AGAIN, few)


def variant(
    name: str, prepared: Prepared, settings: Settings, pull: float, fit: Any, choices: Sequence[RemovalPlan]
) -> Variant:
    out, compared = _folder(settings) / name.replace(" ", "-"), estimators(pull, settings.seed, prepared)
    processes = 1 if torch.get_num_threads() == 1 else None
    options: Any = {"runs": range(ORDERS), "processes": processes}
    return Variant((name,), prepared.chain, prepared.query, fit, choices, compared, out, **options)


def estimators(pull: float, seed: int, prepared: Prepared) -> list[Estimator]:
    """Ours, solved as exactly as the truth is, and the controls."""
    vocabulary, solver = prepared.data.reader, _solver(pull)
    return [
        Influence(Hessian(), solver, name=OURS),
        Influence(GaussNewton(), solver, name="multi-stage, Gauss-Newton"),
        Influence(Hessian(), name="multi-stage, default damping"),
        Influence(Identity(), name=IDENTITY),
        SingleStage(Hessian(), solver),
        *controls(embedded, seed, text=lambda example: vocabulary.text(example[0])),
    ]


def _exactly(pull: float) -> Resolve:
    return Resolve(tolerance=1e-9, proximity=pull)


def _solver(pull: float) -> Lanczos:
    return shifted(pull, rtol=1e-6, max_steps=3000)


def _folder(settings: Settings) -> Any:
    return settings.root / f"seed-{settings.seed}"


def _prepare(settings: Settings, progress: Progress) -> Prepared:
    return prepare(settings, SMALL, Checkpoints(_folder(settings)), progress)


def _traced(prepared: Prepared, settings: Settings, progress: Progress) -> Record:
    large, lines = scored_large(settings, progress)
    return {"lines": {"large": lines, "small": ends_of(prepared, _solver(PULLS[-1]))}, "large": large}


def _fields(run: Run) -> Record:
    return {
        "protocol": {"small": repr(SMALL), "adam": repr(AGAIN), "orders": ORDERS},
        "seeds": run.nested(),
        "stages": {str(seed): facts for seed, facts in run.training.items()},
        "failed": run.failed,
        **run.traced,
        "seconds": run.seconds,
    }


EXPERIMENT = Experiment(
    "word-vectors",
    seeds=3,
    prepare=_prepare,
    training=lambda prepared: prepared.facts,
    trace=_traced,
    variants=variants,
    fields=_fields,
    headline=OURS,
)
