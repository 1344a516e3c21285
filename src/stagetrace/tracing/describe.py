"""What identifies a run: its settings by stage, and the fingerprints of everything it reads."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.named import CURVATURES
from stagetrace.errors import refuse, some_names
from stagetrace.progress import Progress
from stagetrace.results import JSON
from stagetrace.solvers.base import Solver
from stagetrace.solvers.early_stopping import EarlyStopping
from stagetrace.solvers.named import SOLVERS
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.fingerprint import (
    SCHEME,
    fingerprint_collate,
    fingerprint_examples,
    fingerprint_objective,
    fingerprint_stage,
)
from stagetrace.stages.identity import Identity
from stagetrace.stages.identity.settings import settings_of
from stagetrace.tracing.query import Query

T = TypeVar("T")


NAMED: Mapping[str, Mapping[str, Any]] = {"curvature": CURVATURES, "solver": SOLVERS}
"""What may be given by name, for each argument of `trace`."""


def by_stage(
    chain: Chain,
    given: T | str | Mapping[str, T | str] | None,
    default: T,
    what: str,
    usual: Mapping[str, T] | None = None,
) -> dict[str, T]:
    """One setting per stage, from one for all or a mapping by name; a string stands for what the command line takes.

    usual: of single stages, in the default's place.

    Raises:
        DescriptionError: an unknown stage or setting, or a class was given where an instance is wanted.
    """
    named = dict(given) if isinstance(given, Mapping) else {}
    chain.check_names(named, what)
    for name in named:
        if chain[name].recording is not None:
            refuse(
                f"{what}: stage '{name}' is differentiated through its recorded steps, which need no {what}; drop it"
            )
    if given is None or isinstance(given, Mapping):
        settings = {name: named.get(name, (usual or {}).get(name, default)) for name in chain.names}
    else:
        settings = dict.fromkeys(chain.names, given)
    found = {name: _setting(setting, default, f"{what} of stage '{name}'", what) for name, setting in settings.items()}
    for name, setting in found.items():
        if isinstance(setting, EarlyStopping) and chain[name].recording is None:
            _check_early(chain[name], setting)
    return found


def _check_early(bound: BoundStage, solver: EarlyStopping) -> None:
    """Refuse early stopping of a stage that trained another one's parameters further, and another stage's metric."""
    where = f"solver of stage '{bound.name}': EarlyStopping"
    if bound.anchored_to:
        refuse(
            f"{where} says how a stage answers to its own examples, not to where it started, and "
            f"{some_names(sorted(bound.anchored_to))} were trained further from the stage before: record the training "
            "and link it by Unrolled(...), or take another solver"
        )
    segments = [("metric", each.metric) for each in (solver, *solver.earlier)]
    segments += [("earlier", each.values) for each in solver.earlier]
    for what, entries in segments:
        if entries is not None and entries.numel() != bound.trained.size:
            refuse(
                f"{where}({what}=...) has {entries.numel():,} entries, but the stage trained {bound.trained.size:,}; "
                f"type stopped_early(chain['{bound.name}'], optimizer), which reads it in the stage's order"
            )


def _setting(given: Any, default: Any, where: str, what: str) -> Any:
    named = NAMED[what]
    if isinstance(given, str):
        if given not in named:
            refuse(f"{where} must be {', '.join(map(repr, named))} or an instance such as {default!r}, got {given!r}")
        return named[given]
    if isinstance(given, type):
        refuse(
            f"{where} must be an instance such as {default!r}, got the class {given.__name__}; write "
            f"{given.__name__}() with parentheses"
        )
    needed = ("operator",) if what == "curvature" else ("prepare", "rule")
    if not all(callable(getattr(given, name, None)) for name in needed):
        refuse(f"{where} must be {', '.join(map(repr, named))} or an instance such as {default!r}, got {given!r}")
    return given


def scored_stages(chain: Chain, of: Iterable[str] | str | None) -> set[str]:
    """The stages whose examples are scored.

    Raises:
        DescriptionError: an unknown stage name, or there is none.
    """
    if of is None:
        return set(chain.names)
    names = {of} if isinstance(of, str) else set(of)
    chain.check_names(names, "of")
    if not names:
        refuse("of: no stage to score; name at least one, or leave it out to score every stage")
    return names


def describe(
    chain: Chain,
    query: Query,
    curvature: Mapping[str, Curvature],
    solver: Mapping[str, Solver],
    scored: Iterable[str],
    *,
    parts: bool,
    progress: Progress,
    read: bool = True,
) -> dict[str, JSON]:
    """Fingerprints and settings: a run is resumed only if all of these are equal, and nothing is `unidentified`.

    read: whether the data sets are read for their digests; else these are "not taken", but for their ends.
    """
    (risk, *contrast), last, identity = query.risks(chain.last), chain.last.stage, Identity()
    collate = query.collate or last.collate
    stages = {bound.name: fingerprint_stage(bound, progress, identity, read=read) for bound in chain}
    asked = {
        "data": fingerprint_examples(risk.examples, progress, identity, read=read),
        "objective": fingerprint_objective(risk.objective, last.model, identity),
        "collate": fingerprint_collate(collate, query.data, identity),
        "reduction": query.reduction,
    }
    if contrast:
        asked["contrast"] = fingerprint_examples(contrast[0].examples, progress, identity, read=read)
    solved = [bound.name for bound in chain if bound.recording is None]
    solving = {
        "curvature": {name: settings_of(curvature[name], identity) for name in solved if name in curvature},
        "solver": {name: settings_of(solver[name], identity) for name in solved if name in solver},
    }
    return {
        "fingerprints": SCHEME,
        "stages": stages,
        "order": list(chain.names),
        "query": asked,
        **solving,
        "of": sorted(scored, key=chain.names.index),
        "parts": parts,
        "versions": identity.versions(),
    }
