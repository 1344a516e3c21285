"""What makes a run this run: its settings by stage, and the fingerprints of everything it reads."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from stagetrace.curvature.choices import Curvature
from stagetrace.curvature.named import CURVATURES
from stagetrace.errors import refuse
from stagetrace.progress import Progress
from stagetrace.results import JSON
from stagetrace.solvers.base import Solver
from stagetrace.solvers.named import SOLVERS
from stagetrace.stages.chain import Chain
from stagetrace.stages.fingerprint import fingerprint_examples, fingerprint_objective, fingerprint_problem
from stagetrace.tracing.query import Query

T = TypeVar("T")


NAMED: Mapping[str, Mapping[str, Any]] = {"curvature": CURVATURES, "solver": SOLVERS}
"""What may be given by its name on the command line, by the argument of `trace`."""


def by_stage(chain: Chain, given: T | str | Mapping[str, T | str] | None, default: T, what: str) -> dict[str, T]:
    """One setting per stage, from one for all or a mapping by name; a string stands for what the command line takes.

    Raises:
        DescriptionError: a name is no stage's or no setting's, or a class was given where an instance is wanted.
    """
    named = dict(given) if isinstance(given, Mapping) else {}
    chain.check_names(named, what)
    everywhere = default if given is None or isinstance(given, Mapping) else given
    settings = {name: named.get(name, everywhere) for name in chain.names}
    return {name: _setting(setting, default, f"{what} of stage '{name}'", what) for name, setting in settings.items()}


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
    if not callable(getattr(given, "operator" if what == "curvature" else "prepare", None)):
        refuse(f"{where} must be {', '.join(map(repr, named))} or an instance such as {default!r}, got {given!r}")
    return given


def scored_stages(chain: Chain, of: Iterable[str] | str | None) -> set[str]:
    """The stages whose examples are scored.

    Raises:
        DescriptionError: a name is no stage's, or there is none.
    """
    if of is None:
        return set(chain.names)
    names = {of} if isinstance(of, str) else set(of)
    chain.check_names(names, "of")
    if not names:
        refuse("of: no stage to score; name at least one, or leave it out to score every stage")
    return names


def settings_of(choice: object) -> JSON:
    """A choice's name and fields as plain values. `memory` is left out: it decides how, not what, is computed.

    Example:
        >>> from stagetrace import Hessian
        >>> settings_of(Hessian(examples=10))
        {'name': 'Hessian', 'examples': 10, 'seed': 0}
    """
    if isinstance(choice, (int, float, str, type(None))):
        return choice
    if is_dataclass(choice) and not isinstance(choice, type):
        named = {field.name: getattr(choice, field.name) for field in fields(choice) if field.name != "memory"}
        return {"name": type(choice).__qualname__, **{key: settings_of(value) for key, value in named.items()}}
    return getattr(choice, "__qualname__", type(choice).__qualname__)


def describe(
    chain: Chain,
    query: Query,
    curvature: Mapping[str, Curvature],
    solver: Mapping[str, Solver],
    scored: Iterable[str],
    *,
    parts: bool,
    progress: Progress,
) -> dict[str, JSON]:
    """Fingerprints and settings: a run is resumed only if all of these are equal."""
    risk = query.risk(chain.last)
    return {
        "stages": {problem.name: fingerprint_problem(problem, progress) for problem in chain},
        "order": list(chain.names),
        "query": {
            "data": fingerprint_examples(risk.examples, progress),
            "objective": fingerprint_objective(risk.objective),
            "reduction": query.reduction,
        },
        "curvature": {name: settings_of(choice) for name, choice in curvature.items()},
        "solver": {name: settings_of(choice) for name, choice in solver.items()},
        "of": sorted(scored, key=chain.names.index),
        "parts": parts,
    }
