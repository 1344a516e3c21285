"""From the words of the command line to solvers and curvatures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, final

from stagetrace.curvature.auto import Auto
from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.named import CURVATURES as CURVATURES
from stagetrace.errors import refuse
from stagetrace.solvers import Lanczos
from stagetrace.solvers.base import Solver
from stagetrace.solvers.named import SOLVERS as SOLVERS
from stagetrace.stages.chain import Chain
from stagetrace.tracing.describe import by_stage


@final
@dataclass(frozen=True)
class Words:
    """Options as typed: each entry is VALUE for every stage, or STAGE=VALUE for one."""

    solver: Sequence[str] = ()
    damping: Sequence[str] = ()
    max_steps: Sequence[str] = ()
    rtol: Sequence[str] = ()
    curvature: Sequence[str] = ()
    examples: Sequence[str] = ()
    seed: int | None = None


def solvers(chain: Chain, words: Words, given: Any) -> dict[str, Solver]:
    """Each stage's solver: the target's or the default, changed by what was typed."""
    chosen = by_stage(chain, given, Lanczos(), "solver")
    for name, word in per_stage(chain, words.solver, "--solver").items():
        chosen[name] = named(word, SOLVERS, "--solver")
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
        chosen[name] = named(word, CURVATURES, "--curvature")
    for name, word in per_stage(chain, words.examples, "--hessian-examples").items():
        chosen[name] = with_field(
            chosen[name], "examples", number(word, int, "--hessian-examples"), "--hessian-examples"
        )
    if words.seed is not None:
        chosen = {
            name: with_field(c, "seed", words.seed, "--seed") if applies(c, "seed") else c for name, c in chosen.items()
        }
    return chosen


def per_stage(chain: Chain, typed: Sequence[str], option: str) -> dict[str, str]:
    """`["1e-2", "finetune=1e-8"]` -> a value per stage; what names a stage wins."""
    everywhere = {name: word for word in typed if "=" not in word for name in chain.names}
    singled: Mapping[str, str] = dict(word.split("=", 1) for word in typed if "=" in word)
    chain.check_names(singled, option)
    return {**everywhere, **singled}


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
