"""`language`: section 4.5 of the paper. A language model in the shape of ELMo, and tweets classified on top of it.

`--size small`  a small network, trained; scores against further training without groups of sentences (Adam goes on
                from its saved state, beside a control of the same batches; several orders are averaged)
`--size paper`  the network of the paper's size with its initial weights: what a score costs (`cost.py`)
"""

import json
from typing import Any

from torch import Tensor, nn

from experiments import protocol, records
from experiments.estimators import DEFAULT, GAUSS_NEWTON, IDENTITY, controls, shifted
from experiments.language import cost
from experiments.language.data import Size, corpora
from experiments.language.elmo import Shape
from experiments.language.fits import OnFeatures
from experiments.language.sentences import chosen_tweets
from experiments.language.stages import prepare
from experiments.protocol import Experiment, Prepared, Variant
from experiments.records import Record
from experiments.settings import Settings
from experiments.training import Training
from stagetrace import GaussNewton, Identity, Lanczos
from stagetrace.curvature import Auto
from stagetrace.progress import Progress
from stagetrace.validation import Adam, Estimator, GroupRemovals, Influence, SingleStage, Steps

NAME = "language"
SIZES = ("small", "paper")
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
PLANS = {
    "pretrain": Training(epochs=25, rate=5e-3, batch=50, weight_decay=1e-4),
    "finetune": Training(epochs=30, rate=3e-3, batch=100, weight_decay=1e-2),
}
AGAIN = {"pretrain": 40, "finetune": 100}
RATES = {"pretrain": 3e-4, "finetune": 1e-3}
"""Steps and Adam's rate when a stage is trained on: in batches as before, the head on all tweets at once."""
ORDERS = 5
SHARE, COUNT = 0.1, 24
SEEDS = 3
HESSIAN_EXAMPLES = 100
"""Sentences that the curvature of the first stage averages over, and tweets that of the single stage."""
RESIDUAL, STEPS = 1e-3, 60
SINGLE = "single stage, Gauss-Newton + 0.1"


def run(settings: Settings, progress: Progress) -> None:
    """The size that was asked for; `small` where none was."""
    if settings.size == "paper":
        cost.run(
            settings,
            progress,
            lambda fields: records.write_result(NAME, settings, _with_other_size("paper", settings, fields)),
        )
        return
    Experiment(
        NAME,
        SEEDS,
        prepare=lambda here, progress: prepare(SMALL, PLANS, here, corpora(SMALL, here), progress),
        training=lambda prepared: prepared,
        trace=lambda prepared, here, progress: chosen_tweets(prepared, here, headline(), progress),
        variants=lambda prepared, here: [_variant(prepared, here)],
        fields=_fields,
        headline=GAUSS_NEWTON,
    )(settings, progress)


def _variant(prepared: Prepared, settings: Settings) -> Variant:
    """Groups of sentences left out of further training."""
    rules = {stage: Adam(RATES[stage], state=state) for stage, state in prepared.states.items()}
    fit = {
        "pretrain": Steps(rules["pretrain"], AGAIN["pretrain"], PLANS["pretrain"].batch),
        "finetune": OnFeatures(Steps(rules["finetune"], AGAIN["finetune"], len(prepared.data.tweets))),
    }
    choices, out = (
        [GroupRemovals(SHARE, COUNT, seed=settings.seed)],
        settings.root / "retrained" / f"seed-{settings.seed}",
    )
    options: Any = {"runs": range(ORDERS), "together": 4}
    return Variant((), prepared.chain, prepared.query, fit, choices, estimators(settings.seed), out, **options)


def headline() -> Influence:
    """What `docs/how-to-choose.md` takes for stages that are not at a minimum."""
    curvature = {"pretrain": GaussNewton(examples=HESSIAN_EXAMPLES), "finetune": GaussNewton()}
    return Influence(curvature, _shifted(), name=GAUSS_NEWTON)


def estimators(seed: int) -> list[Estimator]:
    """The score as `headline` has it and with the defaults, and the controls."""
    default = {"pretrain": Auto(examples=HESSIAN_EXAMPLES), "finetune": Auto(examples=None)}
    return [
        headline(),
        Influence(default, Lanczos(max_steps=STEPS), name=DEFAULT),
        Influence(Identity(), name=IDENTITY),
        SingleStage(GaussNewton(examples=HESSIAN_EXAMPLES), _shifted(), name=SINGLE),
        *controls(features, seed, text="text"),
    ]


def _shifted() -> Lanczos:
    return shifted(0.1, rtol=RESIDUAL, max_steps=STEPS)


def features(model: nn.Module, batch: Any) -> Tensor:
    """A sentence's embedding: what the classifier's head reads."""
    return model.features(batch)  # pyright: ignore[reportCallIssue]


def _with_other_size(part: str, settings: Settings, fields: Record) -> Record:
    """A size's numbers, with what it ran on, beside those of the other size that `result.json` holds."""
    path = settings.out / "result.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    own = {part: {**fields, "hardware": records.hardware(settings.device)}}
    return {**{name: kept[name] for name in SIZES if name in kept}, **own}


def _fields(run: protocol.Run) -> Record:
    read = run.training[run.settings.seed].data
    each = [
        {"seed": seed["seed"], "training": run.training[seed["seed"]].facts, **seed, "choices": {"groups": groups}}
        for seed in run.found[()]
        for groups in seed["choices"].values()
    ]
    asked = {
        "sentences": len(read.general),
        "tweets": len(read.tweets),
        "query_examples": len(read.tests),
        "vocabulary": SMALL.vocabulary,
        "words": list(SMALL.words),
        "groups": COUNT,
        "share": SHARE,
        "steps": AGAIN,
        "batch": {"pretrain": PLANS["pretrain"].batch, "finetune": len(read.tweets)},
        "rate": RATES,
        "orders": ORDERS,
        "curvature_examples": HESSIAN_EXAMPLES,
    }
    found = {"protocol": asked, "each_seed": each, "sentences": run.traced, "seconds": run.seconds}
    return _with_other_size("small", run.settings, found)
