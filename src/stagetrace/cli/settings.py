"""From the words of the command line to solvers and curvatures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, final

import torch

from stagetrace.cli.options import EXACT_RTOL, EXACT_STEPS, QUICK_EXAMPLES, QUICK_RTOL, QUICK_STEPS
from stagetrace.curvature.auto import Auto, subset_in_words
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.named import CURVATURES as CURVATURES
from stagetrace.curvature.subset import Count
from stagetrace.errors import refuse
from stagetrace.solvers import Lanczos
from stagetrace.solvers.base import Solver
from stagetrace.solvers.named import SOLVERS as SOLVERS
from stagetrace.stages.chain import Chain
from stagetrace.tracing.describe import by_stage

Preset = Literal["quick", "exact"]


@final
@dataclass(frozen=True)
class Words:
    """Options as typed: each entry is VALUE for every stage, or STAGE=VALUE for one.

    preset: changes what was not typed, in the target's own settings too.
    """

    solver: Sequence[str] = ()
    damping: Sequence[str] = ()
    max_steps: Sequence[str] = ()
    rtol: Sequence[str] = ()
    curvature: Sequence[str] = ()
    examples: Sequence[str] = ()
    seed: int | None = None
    preset: Preset | None = None


def solvers(chain: Chain, words: Words, given: Any) -> dict[str, Solver]:
    """Each stage's solver: the target's or the default, changed by what was typed."""
    chosen = by_stage(chain, given, Lanczos(), "solver")
    for name, word in per_stage(chain, words.solver, "--solver").items():
        chosen[name] = named(word, SOLVERS, "--solver")
    for name in chosen if words.preset else ():
        chosen[name] = _preset_solver(chosen[name], words.preset, chain[name].own.dtype)
    for option, field, kind in (
        ("--damping", "damping", float),
        ("--max-steps", "max_steps", int),
        ("--rtol", "rtol", float),
    ):
        for name, word in per_stage(chain, getattr(words, field), option).items():
            value = "auto" if option == "--damping" and word == "auto" else number(word, kind, option)
            chosen[name] = with_field(chosen[name], field, value, option)
    return chosen


def curvatures(chain: Chain, words: Words, given: Any) -> dict[str, Curvature]:
    """Each stage's curvature: the target's or the default, changed by what was typed."""
    chosen = by_stage(chain, given, Auto(), "curvature")
    for name, word in per_stage(chain, words.curvature, "--curvature").items():
        chosen[name] = _with_examples(named(word, CURVATURES, "--curvature"), "auto")
    for name in chosen if words.preset else ():
        chosen[name] = _with_examples(chosen[name], QUICK_EXAMPLES if words.preset == "quick" else None)
    for name, word in per_stage(chain, words.examples, "--hessian-examples").items():
        chosen[name] = with_field(chosen[name], "examples", _count(word), "--hessian-examples")
    if words.seed is not None:
        chosen = {
            name: with_field(c, "seed", words.seed, "--seed") if applies(c, "seed") else c for name, c in chosen.items()
        }
    return chosen


def subsets(chain: Chain, curvature: Mapping[str, Curvature]) -> list[str]:
    """A line for each stage whose curvature is that of some of its examples."""
    said = [(problem, subset_in_words(curvature[problem.name], problem)) for problem in chain]
    return [f"{problem.stage.where}: {text}" for problem, text in said if text]


def per_stage(chain: Chain, typed: Sequence[str], option: str) -> dict[str, str]:
    """`["1e-2", "finetune=1e-8"]` -> a value per stage; what names a stage wins."""
    everywhere = {name: word for word in typed if "=" not in word for name in chain.names}
    singled: Mapping[str, str] = dict(word.split("=", 1) for word in typed if "=" in word)
    chain.check_names(singled, option)
    return {**everywhere, **singled}


def _preset_solver(solver: Solver, preset: Preset | None, dtype: torch.dtype) -> Solver:
    """The solver, rough or to the end; one without such settings stays as it is."""
    exact = EXACT_RTOL if dtype == torch.float64 else None  # rounding lets no other go far beyond the solver's own
    rtol, steps = (QUICK_RTOL, QUICK_STEPS) if preset == "quick" else (exact, EXACT_STEPS)
    for field, value in (("rtol", rtol), ("max_steps", steps)):
        if value is not None and applies(solver, field):
            solver = with_field(solver, field, value, f"--{preset}")
    return solver


def _with_examples(curvature: Curvature, examples: Count) -> Curvature:
    return with_field(curvature, "examples", examples, "") if applies(curvature, "examples") else curvature


def _count(word: str) -> Count:
    """What was typed for a number of examples."""
    if word in ("all", "auto"):
        return None if word == "all" else "auto"
    try:
        return int(word)
    except ValueError:
        refuse(f"--hessian-examples needs a whole number, all or auto (or STAGE=NUMBER), got '{word}'")


def named(word: str, known: Mapping[str, Any], option: str) -> Any:
    """What a name stands for."""
    if word not in known:
        refuse(f"{option} must be one of {', '.join(known)}, got '{word}'")
    return known[word]


def number(word: str, kind: type, option: str) -> Any:
    """The word as a number (or as it is, for `str`)."""
    try:
        return kind(word)
    except ValueError:
        refuse(f"{option} needs a {'whole number' if kind is int else 'number'} (or STAGE=NUMBER), got '{word}'")


def applies(setting: Any, field: str) -> bool:
    """Whether the setting, or what it wraps, has such a field."""
    return _has(setting, field) or _wrapper(setting, field) is not None


def with_field(setting: Any, field: str, value: object, option: str) -> Any:
    """The setting with one field changed; a wrapped solver's or rule's fields are reached through its wrapper.

    Raises:
        DescriptionError: there is no such field.
    """
    if _has(setting, field):
        return replace(setting, **{field: value})
    wrapper = _wrapper(setting, field)
    if wrapper is not None:
        return replace(setting, **{wrapper: replace(getattr(setting, wrapper), **{field: value})})
    refuse(f"{option} does not apply to {setting}")


def _has(setting: Any, field: str) -> bool:
    return is_dataclass(setting) and field in {f.name for f in fields(setting)}


def _wrapper(setting: Any, field: str) -> str | None:
    """The field that holds what has the field."""
    held = (name for name in ("inner", "rule") if _has(setting, name) and _has(getattr(setting, name), field))
    return next(held, None)
