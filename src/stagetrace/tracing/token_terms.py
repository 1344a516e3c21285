"""The losses and adjoints whose contractions, token by token and summed, are a stage's token scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.subset import seeded_subset
from stagetrace.parallel import world
from stagetrace.stages.data import Batch
from stagetrace.stages.predicted import Tokens, places_of
from stagetrace.stages.risk import Risk
from stagetrace.tracing.score import PROBED
from stagetrace.tracing.token_losses import TokenWay, token_derivatives, token_way

__all__ = ["TokenTerms"]


@final
@dataclass(frozen=True)
class TokenTerms:
    """Scores of tokens: `-(d loss_it / d trained) . adjoint`, summed over the terms; positive = harmful.

    each: the losses, and adjoints `[trained.size, k]`; several where the training is known in segments.
    """

    each: tuple[tuple[Risk, Tensor], ...]
    way: TokenWay

    @staticmethod
    def of(each: Sequence[tuple[Risk, Tensor]]) -> "TokenTerms":
        """Decide how to contract, on the first examples and others drawn by a seed.

        Raises:
            DescriptionError, DifferentiationError: as `token_way`.
        """
        risk = each[-1][0]
        total = len(risk.examples)
        probed = sorted({*range(min(2, total)), *seeded_subset(total, PROBED, seed=0)})
        with world().together(f"looking how to score tokens of {risk.where}"):
            way = token_way(risk, next(iter(risk.read([probed]))))
        return TokenTerms(tuple(each), way)

    @property
    def risk(self) -> Risk:
        """The losses at the stage's outcome."""
        return self.each[-1][0]

    @property
    def columns(self) -> int:
        """Scores of each token."""
        return self.each[0][1].shape[1]

    def contracted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Token losses `[batch, length]` and scores `[batch, length, columns]`."""
        *_, (losses, dots) = found = [token_derivatives(self.way, risk, batch, x) for risk, x in self.each]
        for _, more in found[:-1]:
            dots = dots + more
        return losses, dots.neg()

    def tokens(self, batch: Batch, scores: Tensor) -> Tokens:
        """The predicted tokens of a batch with their scores, out of `[batch, length, columns]`."""
        places = places_of(self.risk, batch)
        values = scores.cpu()[places.rows, places.columns].mT
        return Tokens(torch.tensor(batch.indices)[places.rows], places.positions, places.tokens, values)
