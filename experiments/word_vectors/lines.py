"""The lines at the ends of a ranking, in words: for the mean test loss, and for a tweet of each label."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from experiments.corpora import without_names
from experiments.word_vectors.stages import Corpora, Trained
from stagetrace import Hessian, Query, Trace, trace
from stagetrace.solvers.base import Solver

SHOWN = 5
WORDS = 8
"""A tweet that is shown has at least so many words of the vocabulary."""
CUT = 160
"""Characters of a line that are kept."""


def ends_of(corpora: Corpora, both: Trained, solver: Solver) -> list[dict[str, Any]]:
    """For each query: what it is, and the lines with the largest and smallest score; positive = harmful."""
    return described(corpora, trace(both.chain, both.query, curvature=Hessian(), solver=solver, of=["pretrain"])) + [
        entry
        for place in places(corpora)
        for entry in described(
            corpora,
            trace(both.chain, one(both.query, corpora, place), curvature=Hessian(), solver=solver, of=["pretrain"]),
            place,
        )
    ]


def one(query: Query, corpora: Corpora, place: int) -> Query:
    """The loss of a single test tweet."""
    return replace(query, data=torch.utils.data.Subset(corpora.test, [place]))


def places(corpora: Corpora) -> list[int]:
    """Of each label, the first test tweet with enough words."""
    words, labels = corpora.test.tensors
    enough = (words > 0).sum(dim=1) >= WORDS
    return [int((enough & (labels == label)).nonzero()[0, 0]) for label in labels[enough].unique()]


def described(corpora: Corpora, result: Trace, place: int | None = None) -> list[dict[str, Any]]:
    """One entry: the query in words, and both ends of the ranking."""
    scores = result["pretrain"]
    asked: dict[str, Any] = {"query": "the mean loss over the test tweets"}
    if place is not None:
        asked = {"query": without_names(corpora.test_texts.texts[place]), "label": int(corpora.test.tensors[1][place])}
    return [
        {
            **asked,
            "mean_absolute_score": scores.values.abs().mean().item(),
            "most_harmful": _rows(corpora, scores.values, harmful=True),
            "most_helpful": _rows(corpora, scores.values, harmful=False),
        }
    ]


def _rows(corpora: Corpora, values: Tensor, *, harmful: bool) -> list[dict[str, Any]]:
    """Row in the data set's split, score, and the line's beginning."""
    order = values.argsort(descending=harmful)[:SHOWN].tolist()
    texts = corpora.line_texts
    return [{"row": texts.rows[i], "score": values[i].item(), "text": texts.texts[i].strip()[:CUT]} for i in order]
