"""From the words of the command line to how stages are trained again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from stagetrace.cli.settings import applies, named, number, per_stage, with_field
from stagetrace.errors import refuse
from stagetrace.stages.chain import Chain
from stagetrace.stages.problem import Problem
from stagetrace.validation import SGD, Adam, Fit, Resolve, Steps
from stagetrace.validation.fits import Call, as_fit
from stagetrace.validation.fits.rules import Rule

# Adam at 1e-3, restarted without its state, moves every parameter by the whole rate at first: on MNIST two batch orders
# agreed at r = 0.41; at 1e-4 the means of three orders agreed at 0.80.
RULES: dict[str, Rule] = {"adam": Adam(rate=1e-4), "sgd": SGD()}
KINDS = ("resolve", *RULES)
EPOCHS = 5
BATCH = 64


@final
@dataclass(frozen=True)
class Words:
    """Options as typed: each entry is VALUE for every stage that has such a setting, or STAGE=VALUE for one."""

    fit: Sequence[str] = ()
    steps: Sequence[str] = ()
    batch_size: Sequence[str] = ()
    rate: Sequence[str] = ()
    start: Sequence[str] = ()
    schedule: Sequence[str] = ()
    tolerance: Sequence[str] = ()
    proximity: Sequence[str] = ()


FIELDS: tuple[tuple[str, type], ...] = (
    ("batch_size", int),
    ("steps", int),
    ("rate", float),
    ("start", str),
    ("schedule", str),
    ("tolerance", float),
    ("proximity", float),
)


def fits(chain: Chain, stage: str, words: Words, given: Any) -> dict[str, Fit]:
    """The fit of each stage from `stage` on: the target's or the default, changed by what was typed.

    Raises:
        DescriptionError: a word that names no stage, no fit or no setting of one.
    """
    later = {problem.name: problem for problem in chain.problems[chain.names.index(stage) :]}
    chosen = _given(chain, given, later)
    typed = _typed(chain, words.fit, "--fit", later)
    is_double = all(dtype == torch.float64 for problem in later.values() for dtype in problem.own.dtypes)
    sizes = _typed(chain, words.batch_size, "--batch-size", later)
    for name, problem in later.items():
        if name in typed or name not in chosen:
            kind = typed.get(name, "resolve" if is_double else "adam")
            chosen[name] = _new(problem, kind, sizes.get(name))
    for field, kind in FIELDS:
        _change(chosen, chain, getattr(words, field), field, kind)
    return {name: chosen[name] for name in later}


def in_words(fit: Fit) -> str:
    """What a fit does, in a line."""
    if isinstance(fit, Resolve):
        pull = f", a pull of {fit.proximity:g} towards the trained values" if fit.proximity else ""
        return f"resolve: Newton steps to a gradient norm of {fit.tolerance:g}{pull}"
    if isinstance(fit, Steps):
        rule = type(fit.rule).__name__
        rate = f"rate {fit.rule.rate:g}" + ("" if fit.schedule == "constant" else f" ({fit.schedule})")
        return f"{rule}: {fit.steps} steps, {rate}, batches of {fit.batch_size}, {fit.start} start"
    if isinstance(fit, Call):
        return f"{getattr(fit.function, '__name__', 'a function')}(): the target's own training"
    return f"{fit}"


def _given(chain: Chain, given: Any, later: Mapping[str, Problem]) -> dict[str, Fit]:
    """What the target gave."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return dict.fromkeys(later, as_fit(given))
    chain.check_names(given, "the target's option 'fit'")
    return {name: as_fit(fit) for name, fit in given.items() if name in later}


def _new(problem: Problem, kind: str, batch_size: str | None) -> Fit:
    """A fit of a kind at its defaults, which depend on the number of examples."""
    named(kind, dict.fromkeys(KINDS), "--fit")
    if kind == "resolve":
        return Resolve()
    examples = len(problem.stage.examples)
    size = BATCH if batch_size is None else max(1, number(batch_size, int, "--batch-size"))
    return Steps(RULES[kind], EPOCHS * math.ceil(examples / size), min(size, examples))


def _typed(chain: Chain, words: Sequence[str], option: str, later: Mapping[str, Problem]) -> dict[str, str]:
    """A word per stage; one for a stage that is not trained again is refused."""
    for word in words:
        stage = word.split("=", 1)[0]
        if "=" in word and stage in chain.names and stage not in later:
            refuse(f"{option}: stage '{stage}' is not trained again; those are {', '.join(map(repr, later))}")
    return {name: word for name, word in per_stage(chain, words, option).items() if name in later}


def _change(chosen: dict[str, Fit], chain: Chain, words: Sequence[str], field: str, kind: type) -> None:
    """Set a field of every fit that has it, or of the stage that was named; refused if that changes nothing."""
    option = f"--{field.replace('_', '-')}"
    singled = {word.split("=", 1)[0] for word in words if "=" in word}
    typed = {name: word for name, word in per_stage(chain, words, option).items() if name in chosen}
    able = {name for name in typed if applies(chosen[name], field)}
    for name, word in typed.items():
        if name in able or name in singled or not able:
            chosen[name] = with_field(chosen[name], field, number(word, kind, option), option)
