"""Scores against the truth: both stages solved again without the example."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch

from stagetrace import Chain, Query, Scores
from stagetrace.progress import Progress
from stagetrace.validation import Agreement, removal_effects


@final
@dataclass(frozen=True)
class Checked:
    """One pretraining digit: predicted and true change of the test loss; negative = taking it out helps.

    tenth: where a tenth of it was taken out. digit: what it shows.
    """

    index: int
    digit: int
    predicted: float
    true: float
    predicted_tenth: float
    true_tenth: float


@final
@dataclass(frozen=True)
class Check:
    """A choice of digits, solved again without each."""

    choice: str
    rows: tuple[Checked, ...]
    whole: Agreement
    tenth: Agreement
    seconds: float


def check(
    choice: str,
    indices: Sequence[int],
    chain: Chain,
    query: Query,
    scores: Scores,
    digits: Sequence[int],
    progress: Progress,
) -> Check:
    """Solve both stages again without each digit, and without a tenth of it; compare with what its score says."""
    started = time.perf_counter()
    predicted = scores.removal_effect[list(indices)]
    true, tenth = (
        removal_effects(chain, query, scores.stage, indices, share=share, progress=progress) for share in (1.0, 0.1)
    )
    columns = zip(
        *(column.tolist() for column in (predicted, true, predicted / 10, tenth)),
        strict=True,
    )
    rows = tuple(Checked(index, digits[index], *row) for index, row in zip(indices, columns, strict=True))
    return Check(
        choice, rows, Agreement.of(predicted, true), Agreement.of(predicted / 10, tenth), time.perf_counter() - started
    )


def drawn(total: int, count: int, seed: int) -> list[int]:
    """`count` of `total` indices, without a look at any score."""
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randperm(total, generator=generator)[:count].tolist()
