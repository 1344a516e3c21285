"""`language`: section 4.5 of the paper. A language model in the shape of ELMo, and tweets classified on top of it.

`--size small`  a small network, trained. Groups of sentences are taken out, both stages are trained on without them,
                and scores and controls are compared with what that does to the loss on test tweets; three seeds.
`--size paper`  the network of the paper's size with its initial weights: what a score costs (`cost.py`).

Trained on without a group: Adam goes on from the state it ended with, at a constant rate, beside a control that sees
the same batches; several orders of the batches are averaged.

OUT/checkpoints, OUT/run           first seed: stages; trace of the chosen tweets
OUT/seed-N/checkpoints             the stages of the other seeds
OUT/retrained/seed-N               every retraining, kept as it ends
OUT/agreement.png, OUT/result.json what `small` and `paper` found; each call keeps the other's part
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from experiments.agreement_figures import panels
from experiments.language import cost
from experiments.language.data import Size, corpora
from experiments.language.elmo import Shape
from experiments.language.fits import OnFeatures
from experiments.language.sentences import chosen_tweets
from experiments.language.stages import STAGES, Trained, train_both
from experiments.paper import IDENTITY
from experiments.result import hardware, write_result
from experiments.settings import Settings
from experiments.training import Training
from stagetrace import GaussNewton, Identity, Lanczos
from stagetrace.curvature import Auto
from stagetrace.progress import Progress
from stagetrace.solvers import Shift
from stagetrace.validation import (
    BM25,
    Adam,
    EmbeddingSimilarity,
    Estimator,
    GradientDot,
    Groups,
    Influence,
    LinearDatamodelling,
    Random,
    SingleStage,
    Steps,
    Validation,
    validate,
)

NAME = "language"
SMALL = Size(
    shape=Shape(character=8, filters=((1, 8), (2, 16), (3, 32)), highways=1, projection=32, cells=64),
    words=(6, 10),
    sentences=1000,
    tweets=500,
    tests=150,
    vocabulary=500,
    letters=16,
    lower=True,
)
PRETRAINING = Training(epochs=25, rate=5e-3, batch=50, weight_decay=1e-4)
FINETUNING = Training(epochs=30, rate=3e-3, batch=100, weight_decay=1e-2)
AGAIN = {"pretrain": 40, "finetune": 100}
RATES = {"pretrain": 3e-4, "finetune": 1e-3}
"""Steps and Adam's rate when a stage is trained on: in batches as before, the head on all tweets at once."""
ORDERS = 5
SHARE, COUNT = 0.1, 24
SEEDS = 3
TOGETHER = 4
HESSIAN_EXAMPLES = 100
"""Sentences that the curvature of the first stage averages over, and tweets that of the single stage."""
DAMPING = 0.1
RESIDUAL, STEPS = 1e-3, 60
GAUSS_NEWTON = "multi-stage, Gauss-Newton + 0.1"
SINGLE = "single stage, Gauss-Newton + 0.1"
DEFAULTS = "multi-stage, the default"
HEADLINE = GAUSS_NEWTON


def run(settings: Settings, progress: Progress) -> None:
    """The size that was asked for; `small` where none was."""
    SIZES[settings.size or "small"](settings, progress)


def _small(settings: Settings, progress: Progress) -> None:
    """Train, trace, train again without groups, compare; a killed run goes on where it was."""
    started = time.perf_counter()
    seeds, validations, first = list[dict[str, Any]](), list[Validation](), dict[str, Any]()
    for seed in range(settings.seed, settings.seed + SEEDS):
        is_first = seed == settings.seed
        here = replace(settings, seed=seed, out=settings.out if is_first else settings.out / f"seed-{seed}")
        both = train_both(SMALL, PRETRAINING, FINETUNING, here, corpora(SMALL, here), progress)
        if is_first:
            first = chosen_tweets(both, here, headline(), progress)
        validation = validate(
            both.chain,
            both.query,
            fit=fits(both),
            choices=[Groups(SHARE, COUNT, seed=seed)],
            estimators=estimators(seed),
            seeds=range(ORDERS),
            together=TOGETHER,
            out=settings.out / "retrained" / f"seed-{seed}",
            progress=progress,
        )
        validations.append(validation)
        seeds.append({"seed": seed, "training": both.said, **_measured(validation)})
        panels(settings.out / "agreement.png", {NAME: [found.measured for found in validations]}, HEADLINE)
        fields = {"protocol": _protocol(both), "each_seed": seeds, "sentences": first}
        write_part("small", settings, {**fields, "seconds": time.perf_counter() - started})


def fits(both: Trained) -> dict[str, Any]:
    """How each stage is trained on."""
    rules = {stage: Adam(RATES[stage], state=both.states[stage]) for stage in STAGES}
    return {
        "pretrain": Steps(rules["pretrain"], AGAIN["pretrain"], PRETRAINING.batch),
        "finetune": OnFeatures(Steps(rules["finetune"], AGAIN["finetune"], len(both.read.tweets))),
    }


def headline() -> Influence:
    """What `docs/how-to-choose.md` takes for stages that are not at a minimum."""
    curvature = {"pretrain": GaussNewton(examples=HESSIAN_EXAMPLES), "finetune": GaussNewton()}
    return Influence(curvature, _shifted(), name=GAUSS_NEWTON)


def estimators(seed: int) -> list[Estimator]:
    """The score as `headline` has it and with the defaults, and the controls."""
    alone = GaussNewton(examples=HESSIAN_EXAMPLES)
    return [
        headline(),
        Influence(_default_matrices(), Lanczos(max_steps=STEPS), name=DEFAULTS),
        Influence(Identity(), name=IDENTITY),
        SingleStage(alone, _shifted(), name=SINGLE),
        GradientDot(),
        EmbeddingSimilarity(features),
        BM25("text"),
        Random(seed),
    ]


def _default_matrices() -> dict[str, Auto]:
    return {"pretrain": Auto(examples=HESSIAN_EXAMPLES), "finetune": Auto(examples=None)}


def _shifted() -> Lanczos:
    return Lanczos(damping=DAMPING, filter=Shift, rtol=RESIDUAL, max_steps=STEPS)


def features(model: nn.Module, batch: Any) -> Tensor:
    """A sentence's embedding: what the classifier's head reads."""
    return model.features(batch)  # pyright: ignore[reportCallIssue]


def write_part(part: str, settings: Settings, fields: dict[str, Any]) -> None:
    """Put a size's numbers, with what it ran on, into `result.json` beside the other size's."""
    path = settings.out / "result.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    parts = {name: kept[name] for name in SIZES if name in kept}
    write_result(NAME, settings, {**parts, part: {**fields, "hardware": hardware(settings.device)}})


def _measured(validation: Validation) -> dict[str, Any]:
    """One seed's numbers."""
    measured = validation.measured[0]
    return {
        "choices": {
            "groups": {
                "estimators": {name: agreement.record() for name, agreement in measured.agreement.items()},
                "lds": {
                    name: LinearDatamodelling.of(predicted, measured.true).record()
                    for name, predicted in measured.predicted.items()
                },
                "reliability": measured.reliability.record() if measured.reliability else None,
                "mean_absolute_effect": measured.true.abs().mean().item(),
            }
        },
        "retrainings": validation.retrainings,
        "retrainings_per_minute_and_process": validation.per_minute,
    }


def _protocol(both: Trained) -> dict[str, Any]:
    read = both.read
    return {
        "sentences": len(read.sentences),
        "tweets": len(read.tweets),
        "query_examples": len(read.tests),
        "vocabulary": SMALL.vocabulary,
        "words": list(SMALL.words),
        "groups": COUNT,
        "share": SHARE,
        "steps": AGAIN,
        "batch": {"pretrain": PRETRAINING.batch, "finetune": len(read.tweets)},
        "rate": RATES,
        "orders": ORDERS,
        "curvature_examples": HESSIAN_EXAMPLES,
    }


SIZES: dict[str, Callable[[Settings, Progress], None]] = {
    "small": _small,
    "paper": lambda settings, progress: cost.run(settings, progress, write_part),
}
