"""Scores of the tokens of some examples, after a trace has scored all examples: a pass over these alone."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from stagetrace.results.tokens import ExampleTokens
from stagetrace.solvers.early_stopping import EarlyStopping
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.halves import by_halves
from stagetrace.stages.predicted import Tokens
from stagetrace.stages.risk import check_finite
from stagetrace.tracing.responses.segments import stretches
from stagetrace.tracing.token_terms import TokenTerms

__all__ = ["tokens_of"]


def tokens_of(bound: BoundStage, solver: object, adjoint: Tensor, indices: Collection[int]) -> dict[int, ExampleTokens]:
    """The tokens of these examples with their scores, as `trace(tokens=True)` has them; positive = harmful.

    Args:
        bound: a stage of `stages_of_tokens`. solver: how it was solved.
        adjoint: the solution's value, `[trained.size, 1]`: of a query that is one number, its two parts not kept apart.
        indices: of examples of the stage.

    Raises:
        DescriptionError, DifferentiationError: as `token_way`.
        DataError: an example's loss or score is NaN or infinite.
    """
    wanted = sorted(set(indices))
    if not wanted:
        return {}
    found, held = TokenTerms.of(_terms(bound, solver, adjoint)), list[Tokens]()
    risk = found.risk
    for batch, (lost, scores) in by_halves(risk, "scoring tokens", risk.read_by_size(wanted), found.contracted):
        check_finite(lost.double().sum(dim=1), batch.indices, risk.where)
        check_finite(scores.double().sum(dim=(1, 2)), batch.indices, risk.where, "the score")
        held.append(found.tokens(batch, scores))
    tokens = Tokens.joined(held, found.columns)
    return {index: _example(index, tokens.at(tokens.index == index)) for index in wanted}


def _terms(bound: BoundStage, solver: object, adjoint: Tensor) -> list[Any]:
    """The losses, and the adjoint of each: of a training known in segments one for each of these."""
    adjoint = adjoint.to(bound.trained.device)
    if not isinstance(solver, EarlyStopping) or not solver.earlier:
        return [(bound.risk, adjoint)]
    places = stretches(bound, solver)
    return [(place.risk, each) for place, each in zip(places, adjoint.split(bound.trained.size), strict=True)]


def _example(index: int, own: Tokens) -> ExampleTokens:
    return ExampleTokens(index, own.position, own.token, own.values[0].float(), torch.zeros(()))
