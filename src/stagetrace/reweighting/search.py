"""The search for better weights: a derivative, a step along it, training again, and the next derivative there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import final

import torch

from stagetrace.errors import SolveError
from stagetrace.progress import Progress
from stagetrace.reweighting.balance import FIRST, LEAST, Weights, along, length_of, next_length, predicted_change
from stagetrace.reweighting.repeat import Outcome, Repeat
from stagetrace.reweighting.result import Try
from stagetrace.tracing.query import Query

TRIES = 4
"""Lengths that are tried along one derivative before it is given up."""


@final
@dataclass(eq=False)
class Search:
    """The search along derivatives: the trainings that are repeated, and what was tried so far."""

    repeats: Sequence[Repeat]
    query: Query
    progress: Progress
    folder: Path
    history: list[Try] = field(default_factory=list[Try])
    stopped: str = ""
    _runs: "count[int]" = field(default_factory=count)

    def train(self, weights: Weights, repeats: Sequence[Repeat] | None = None) -> list[Outcome]:
        """Each training with these weights, from its start to its end."""
        return [
            repeat.train(weights, self.folder / f"run-{next(self._runs)}", self.progress)
            for repeat in repeats or self.repeats
        ]

    def improve(self, weights: Weights, at: list[Outcome], steps: int) -> tuple[Weights, list[Outcome]]:
        """The best weights after so many derivatives, and the trainings with them."""
        length, loss = FIRST, self._loss(at)
        for step in range(1, steps + 1):
            slopes = self._slopes(at, weights)
            for _ in range(TRIES):
                new = along(weights, slopes, length)
                predicted = predicted_change(weights, new, slopes)
                if predicted >= 0:
                    self.stopped = "to first order no other balance of the weights lowers the query loss"
                    return weights, at
                outcomes = self._tried(new)
                found = inf if outcomes is None else self._loss(outcomes)
                found = found if isfinite(found) else inf
                came = (found - loss) / predicted
                self.history.append(Try(step, length_of(weights, new), predicted, found - loss, came >= LEAST))
                length = next_length(length, came)
                if outcomes is not None and came >= LEAST:
                    _discard(at)
                    weights, at, loss = new, outcomes, found
                    break
                _discard(outcomes or [])
            else:
                self.stopped = (
                    f"at none of {TRIES} lengths along the derivative of step {step} did a tenth of the prediction "
                    "come true: the training is too rough for it there (see stagetrace check --smoothness)"
                )
                break
        return weights, at

    def losses(self, repeat: Repeat, weights: Weights, queries: Sequence[Query]) -> list[float]:
        """Each query's loss after that training with these weights."""
        (outcome,) = self.train(weights, [repeat])
        outcome.discard()  # the model is in memory
        return [outcome.loss(query) for query in queries]

    def _tried(self, weights: Weights) -> list[Outcome] | None:
        """The trainings with these weights; None where one diverged."""
        try:
            return self.train(weights)
        except SolveError:
            return None

    def _loss(self, outcomes: Sequence[Outcome]) -> float:
        return fmean(outcome.loss(self.query) for outcome in outcomes)

    def _slopes(self, outcomes: Sequence[Outcome], stages: Iterable[str]) -> Weights:
        each = [outcome.slopes(self.query, self.progress) for outcome in outcomes]
        return {stage: torch.stack([slopes[stage] for slopes in each]).mean(dim=0) for stage in stages}


def _discard(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        outcome.discard()
