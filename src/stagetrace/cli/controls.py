"""What is set beside the score: which controls, and which of them have something to say of this chain."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stagetrace.cli import settings
from stagetrace.curvature.choices import Identity
from stagetrace.errors import StagetraceError, refuse
from stagetrace.progress import Progress
from stagetrace.solvers import Lanczos
from stagetrace.stages.chain import Chain
from stagetrace.tracing.query import Query
from stagetrace.validation import (
    BM25,
    EmbeddingSimilarity,
    Estimator,
    GradientDot,
    Influence,
    Random,
    SingleStage,
)
from stagetrace.validation.agreement import finite
from stagetrace.validation.estimators.estimator import Precomputed, effects_of


def estimators(
    chain: Chain,
    typed: settings.SolveOptions,
    options: Mapping[str, Any],
    embedding: str | None,
    text: str | None,
    seed: int,
) -> tuple[list[Estimator], frozenset[str]]:
    """The estimator under test, its controls, and the names of those that the user asked for by a word of their own.

    The target's `estimators` stand in the place of all these, unless `--solve` was typed: then the score
    is that of `stagetrace score` with the same words, beside the usual controls. seed: of the random control.
    """
    asked: list[Estimator] = []
    if embedding is not None:
        asked.append(EmbeddingSimilarity(embedding))
    if text is not None:
        asked.append(BM25(text))
    found = (
        _default(chain, typed, options, seed)
        if use_default_estimators(typed, options)
        else _given(options["estimators"])
    )
    return [*found, *asked], frozenset(estimator.name for estimator in asked)


def use_default_estimators(typed: settings.SolveOptions, options: Mapping[str, Any]) -> bool:
    """Whether the score and its controls are those of the command, not the target's own list."""
    return options.get("estimators") is None or bool(typed.solve)


def _default(chain: Chain, typed: settings.SolveOptions, options: Mapping[str, Any], seed: int) -> list[Estimator]:
    curvature = settings.curvatures(chain, typed, options.get("curvature"))
    solver = settings.solvers(chain, typed, options.get("solver"), curvature)
    # where every stage was recorded there is no curvature that the identity could stand for
    identity = [Influence(Identity(), Lanczos(damping=0.0), "identity curvature")] if curvature else []
    return [
        Influence(curvature, solver),
        *identity,
        SingleStage(curvature, solver),
        GradientDot(),
        Random(seed),
    ]


def _given(given: Any) -> list[Estimator]:
    found: list[Any] = list(given) if isinstance(given, Sequence) else [given]
    for estimator in found:
        if isinstance(estimator, type) or not callable(getattr(estimator, "removal_effects", None)):
            refuse(
                f"the target's option 'estimators' must be a list such as [Influence(), Random()], got {estimator!r}"
            )
    if not found:
        refuse("the target's option 'estimators' is empty; give one such as Influence(), or leave the option out")
    return found


def predicted(
    found: Sequence[Estimator],
    asked: frozenset[str],
    bound: tuple[Chain, Query, str],
    progress: Progress,
    say: Callable[[str], None],
    *,
    tokens: bool = False,
) -> tuple[list[Estimator], dict[str, str]]:
    """Each estimator with its predictions made, and the controls that do not apply, with the reason.

    tokens: whether single tokens are removed, in place of examples.

    Raises:
        StagetraceError: the first, which is under test, or one that the user asked for, does not apply.
    """
    made, left_out = list[Estimator](), dict[str, str]()
    for estimator in found:
        say(f"predicting by {estimator.name}")
        try:
            effects = finite(f"{estimator.name}: predictions", effects_of(estimator, *bound, progress, tokens=tokens))
        except StagetraceError as cause:
            if not made or estimator.name in asked:
                raise
            left_out[estimator.name] = " ".join(str(cause).split()).removeprefix(f"{estimator.name}: ")
            say(f"{estimator.name} does not apply: {left_out[estimator.name]}")
        else:
            made.append(Precomputed(estimator.name, estimator.unit, effects))
    return made, left_out
