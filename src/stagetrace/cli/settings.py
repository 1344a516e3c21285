"""From the words of the command line to solvers and curvatures: the only place where a string names a class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, final

from stagetrace.curvature.choices import Curvature, GaussNewton, Hessian, Identity
from stagetrace.errors import refuse
from stagetrace.solvers import CG, Direct, Lanczos, LiSSA, Normal
from stagetrace.solvers.base import Solver
from stagetrace.stages.chain import Chain
from stagetrace.tracing.describe import by_stage

SOLVERS: dict[str, Solver] = {
    "lanczos": Lanczos(),
    "normal-cg": Normal(CG(), damping=Lanczos().damping),
    "cg": CG(),
    "lissa": LiSSA(),
    "direct": Direct(),
}
CURVATURES: dict[str, Curvature] = {"hessian": Hessian(), "gauss-newton": GaussNewton(), "identity": Identity()}


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
    for name, word in _per_stage(chain, words.solver, "--solver").items():
        chosen[name] = _named(word, SOLVERS, "--solver")
    for option, field, kind in (
        ("--damping", "damping", float),
        ("--max-steps", "max_steps", int),
        ("--rtol", "rtol", float),
    ):
        for name, word in _per_stage(chain, getattr(words, field), option).items():
            chosen[name] = _with(chosen[name], field, _number(word, kind, option), option)
    return chosen


def curvatures(chain: Chain, words: Words, given: Any) -> dict[str, Curvature]:
    """Each stage's curvature: the target's or the default, changed by what was typed."""
    chosen = by_stage(chain, given, Hessian(), "curvature")
    for name, word in _per_stage(chain, words.curvature, "--curvature").items():
        chosen[name] = _named(word, CURVATURES, "--curvature")
    for name, word in _per_stage(chain, words.examples, "--hessian-examples").items():
        chosen[name] = _with(chosen[name], "examples", _number(word, int, "--hessian-examples"), "--hessian-examples")
    if words.seed is not None:
        chosen = {name: _with(c, "seed", words.seed, "--seed") if _has(c, "seed") else c for name, c in chosen.items()}
    return chosen


def _per_stage(chain: Chain, typed: Sequence[str], option: str) -> dict[str, str]:
    """`["1e-2", "finetune=1e-8"]` -> a value per stage; what names a stage wins."""
    everywhere = {name: word for word in typed if "=" not in word for name in chain.names}
    named: Mapping[str, str] = dict(word.split("=", 1) for word in typed if "=" in word)
    chain.check_names(named, option)
    return {**everywhere, **named}


def _named(word: str, known: Mapping[str, Any], option: str) -> Any:
    if word not in known:
        refuse(f"{option} must be one of {', '.join(known)}, got '{word}'")
    return known[word]


def _number(word: str, kind: type, option: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        refuse(f"{option} needs a {'whole number' if kind is int else 'number'} (or STAGE=NUMBER), got '{word}'")


def _has(setting: Any, field: str) -> bool:
    return field in {f.name for f in fields(setting)}


def _with(setting: Any, field: str, value: object, option: str) -> Any:
    """The setting with one field changed; a wrapped solver's fields are reached through its wrapper."""
    if _has(setting, field):
        return replace(setting, **{field: value})
    if _has(setting, "inner") and _has(setting.inner, field):
        return replace(setting, inner=replace(setting.inner, **{field: value}))
    refuse(f"{option} does not apply to {setting}")
