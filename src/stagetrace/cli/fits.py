"""From `--retrain` to how each stage is retrained."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch

from stagetrace.cli.options import BATCH, EPOCHS, FITS
from stagetrace.cli.spec import Grammar, Spec, by_stage, one_of, positive, real, whole_from
from stagetrace.errors import refuse
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.validation import SGD, Adam, AdamW, Fit, Rerun, Resolve, Steps
from stagetrace.validation.fits import CustomTraining, as_fit, recorded_fit
from stagetrace.validation.fits.optimizers import OptimizerSettings
from stagetrace.validation.fits.steps import SCHEDULES, Start

# Adam at 1e-3, restarted without its state, moves every parameter by the whole rate at first: on MNIST two batch orders
# agreed at r = 0.41; at 1e-4 the means of three orders agreed at 0.80.
OPTIMIZERS: dict[str, OptimizerSettings] = {"adam": Adam(lr=1e-4), "adamw": AdamW(lr=1e-4), "sgd": SGD()}

STARTS = {
    "warm": "warm start",
    "cold": "cold start",
    "previous": "from where the stage before ends, the rest from its trained values",
}
"""Where steps start, in words."""

RETRAIN = Grammar(
    "--retrain",
    FITS,
    {
        "batch_size": whole_from(1),
        "steps": whole_from(1),
        "lr": positive,
        "momentum": real,
        "decay": real,
        "start": one_of(get_args(Start)),
        "schedule": one_of(tuple(SCHEDULES)),
        "order": one_of(("recorded", "other")),
        "tolerance": positive,
        "proximity": real,
    },
    "--retrain pretrain=adam:lr=1e-4,steps=300",
    {"decay": "weight_decay"},
)


def fits(chain: Chain, stage: str, retrain: Sequence[str], given: Any) -> dict[str, Fit]:
    """The fit of each stage from `stage` on: the target's or the default, changed by what was typed.

    Raises:
        DescriptionError: a word that names no stage, no fit or no setting of one.
    """
    later = {bound.name: bound for bound in chain.bound_stages[chain.names.index(stage) :]}
    for word in retrain:
        head = word.partition("=")[0]
        if head in chain.names and head not in later:
            refuse(
                f"--retrain: stage '{head}' is not retrained; the retrained stages are {', '.join(map(repr, later))}"
            )
    specs = {name: spec for name, spec in by_stage(chain, retrain, RETRAIN).items() if name in later}
    chosen = _given(chain, given, later)
    is_double = all(dtype == torch.float64 for bound in later.values() for dtype in bound.trained.dtypes)
    for name, bound in later.items():
        if specs[name].name is not None or name not in chosen:
            recorded = recorded_fit(bound)
            if specs[name].name is None and recorded is not None:
                chosen[name] = recorded
            else:
                chosen[name] = _new(bound, specs[name].name or ("resolve" if is_double else "adam"), specs[name])
    for key in RETRAIN.keys:
        _change(chosen, specs, key)
    return {name: chosen[name] for name in later}


def describe(chain: Chain, fitted: Mapping[str, Fit]) -> dict[str, str]:
    """What each stage's fit does, in a line; by the stage's name."""
    first = next(iter(fitted))
    return {name: _described(fit, chain[name], follows=name != first) for name, fit in fitted.items()}


def _described(fit: Fit, bound: BoundStage, *, follows: bool) -> str:
    if isinstance(fit, Resolve):
        pull = f", a pull of {fit.proximity:g} towards the trained values" if fit.proximity else ""
        return f"resolve: Newton steps to a gradient norm of {fit.tolerance:g}{pull}"
    if isinstance(fit, Rerun):
        order = "in the recorded order" if fit.order == "recorded" else "in other orders"
        return f"rerun: its recorded training repeated, {order}"
    if isinstance(fit, Steps):
        optimizer, start = type(fit.optimizer).__name__, fit.start_at(bound, follows=follows)
        rate = f"learning rate {fit.optimizer.lr:g}" + ("" if fit.schedule == "constant" else f" ({fit.schedule})")
        return f"{optimizer}: {fit.steps} steps, {rate}, batches of {fit.batch_size}, {STARTS[start]}"
    if isinstance(fit, CustomTraining):
        return f"{getattr(fit.function, '__name__', 'a function')}(): the target's own training"
    return f"{fit}"


def _given(chain: Chain, given: Any, later: Mapping[str, BoundStage]) -> dict[str, Fit]:
    """What the target gave."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(later, as_fit(given))
    chain.check_names(given, "the target's option 'fit'")
    return {name: as_fit(fit) for name, fit in given.items() if name in later}


def _new(bound: BoundStage, kind: str, spec: Spec) -> Fit:
    """A fit of a kind at its defaults, which depend on the number of examples."""
    if kind == "resolve":
        return Resolve()
    if kind == "rerun":
        return Rerun()
    examples = len(bound.stage.examples)
    size = spec.settings.get("batch_size", BATCH)
    return Steps(OPTIMIZERS[kind], EPOCHS * math.ceil(examples / size), min(size, examples))


def _change(chosen: dict[str, Fit], specs: Mapping[str, Spec], key: str) -> None:
    """Set a field of every fit that has it, or of the stage that was named; refused if that changes nothing."""
    typed = [name for name, spec in specs.items() if key in spec.settings]
    able = {name for name in typed if RETRAIN.applies(chosen[name], key)}
    for name in typed:
        if name in able or key in specs[name].own or not able:
            chosen[name] = RETRAIN.change(chosen[name], key, specs[name].settings[key])
