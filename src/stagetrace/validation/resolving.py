"""Stages solved again with other example weights: the truth that a score predicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.progress import Progress, Silent
from stagetrace.stages.chain import Chain
from stagetrace.stages.modes import in_ordinary_modes
from stagetrace.stages.revalued import with_values
from stagetrace.tracing.query import Query
from stagetrace.validation.minimum import Minimum
from stagetrace.validation.newton import minimise
from stagetrace.validation.rebinding import with_previous


@final
@dataclass(frozen=True, eq=False)
class Resolved:
    """A chain whose stages were solved again: its models hold the new parameters; minima by stage name."""

    chain: Chain
    minima: Mapping[str, Minimum]


@in_ordinary_modes
def resolve(
    chain: Chain,
    stage: str,
    weights: Tensor | None = None,
    *,
    tolerance: float = 1e-8,
    max_steps: int = 200,
    strict: bool = False,
    progress: Progress | None = None,
) -> Resolved:
    """Solve a stage again with these example weights, then every later stage with its own, each from where it was.

    Parameters that a later stage inherited take the new values; anchored ones are pulled towards them, as strongly as
    before (`alpha="auto"` is estimated once, in `chain`). The chain itself is not changed.

    Args:
        chain: at its strict minimum (see `polish`), or the difference to `chain` is not that of the weights alone.
        stage: whose examples are weighted.
        weights: `[n]`, one per example of that stage; 0 removes one, and n stays the same, see `minimise`.
        tolerance: of each stage's gradient norm.
        max_steps: Newton steps for each stage.
        strict: also check for negative curvature, see `minimise`.

    Raises:
        DescriptionError: no such stage; weights that do not fit; parameters below float64.
        SolveError: a stage did not reach the tolerance.
    """
    chain.check_names([stage], "resolve")
    first = chain.names.index(stage)
    stages, minima, before = list(chain.stages[:first]), dict[str, Minimum](), None
    for position, bound in enumerate(chain.bound_stages[first:], start=first):
        bound = with_previous(bound, before)
        minimum = minimise(
            bound,
            weights if position == first else None,
            tolerance=tolerance,
            max_steps=max_steps,
            strict=strict,
            progress=progress,
        )
        stages.append(with_values(bound.stage, minimum.checked()))
        before = dict(stages[-1].model.named_parameters())
        minima[bound.name] = minimum
    return Resolved(Chain(*stages), minima)


@in_ordinary_modes
def polish(
    chain: Chain, *, tolerance: float = 1e-10, max_steps: int = 200, progress: Progress | None = None
) -> Resolved:
    """Bring every stage to its strict minimum, first to last; where scores at minima are defined exactly.

    Raises:
        DescriptionError: parameters below float64.
        SolveError: a stage did not reach a gradient norm of `tolerance`.
    """
    return resolve(chain, chain.names[0], tolerance=tolerance, max_steps=max_steps, strict=True, progress=progress)


@in_ordinary_modes
def query_loss(chain: Chain, query: Query) -> Tensor:
    """The query loss at the chain's last stage: a float64 number, or `[n_queries]` for a query that is not reduced."""
    return query.loss(chain.last)


def leave_out(examples: int, indices: Sequence[int], share: float = 1.0) -> Tensor:
    """Weights `[examples]`: 1, and `1 - share` at the indices.

    Raises:
        DescriptionError: no such index, or a share outside 0 to 1.

    Example:
        >>> leave_out(4, [2]), leave_out(2, [0], share=0.25)
        (tensor([1., 1., 0., 1.], dtype=torch.float64), tensor([0.7500, 1.0000], dtype=torch.float64))
    """
    wrong = [index for index in indices if not 0 <= index < examples]
    if wrong:
        refuse(f"leave_out: example {wrong[0]} does not exist; type 0 to {examples - 1}")
    if not 0 <= share <= 1:
        refuse(f"leave_out: share must be from 0 (as trained) to 1 (removed), got {share!r}")
    weights = torch.ones(examples, dtype=torch.float64)
    weights[list(indices)] = 1 - share
    return weights


@in_ordinary_modes
def removal_effects(
    chain: Chain,
    query: Query,
    stage: str,
    indices: Sequence[int],
    *,
    share: float = 1.0,
    tolerance: float = 1e-10,
    progress: Progress | None = None,
) -> Tensor:
    """The true change of the query loss as `share` of each example, one at a time, is removed from a stage.

    What `Scores.removal_effect` (times `share`) predicts. Sign: negative = removing it helps. Unit: query loss.

    Returns:
        float64 `[len(indices)]`, or `[n_queries, len(indices)]` for a query that is not reduced.

    Raises:
        DescriptionError, SolveError: as `resolve`.
    """
    chain.check_names([stage], "removal_effects")
    examples = len(chain[stage].stage.examples)
    control, effects = query_loss(chain, query), list[Tensor]()
    with (progress or Silent()).task(
        f"solving again without examples of '{stage}'", len(indices), "examples"
    ) as advance:
        for index in indices:
            again = resolve(chain, stage, leave_out(examples, [index], share), tolerance=tolerance)
            effects.append(query_loss(again.chain, query) - control)
            advance(1)
    return torch.stack(effects, dim=-1)
