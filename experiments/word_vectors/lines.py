"""The lines at the ends of a ranking, in words: for the mean test loss, and for a tweet of each label."""

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.data import Subset

from experiments.protocol import Prepared
from experiments.records import Record
from experiments.texts import ends, without_names
from stagetrace import Hessian, Trace, trace
from stagetrace.solvers.base import Solver

SHOWN = 5
WORDS = 8
"""A tweet that is shown has at least so many words of the vocabulary."""


def ends_of(prepared: Prepared, solver: Solver) -> list[Record]:
    """For each query: what it is, and the lines with the largest and smallest score; positive = harmful."""
    found, query = list[Record](), prepared.query
    for place in (None, *places(query.data.tensors)):
        one = query if place is None else replace(query, data=Subset(query.data, [place]))
        result = trace(prepared.chain, one, curvature=Hessian(), solver=solver, of=["pretrain"])
        found.append(described(prepared, result, place))
    return found


def places(tests: tuple[Tensor, Tensor]) -> list[int]:
    """Of each label, the first test tweet with enough words."""
    words, labels = tests
    enough = (words > 0).sum(dim=1) >= WORDS
    return [int((enough & (labels == label)).nonzero()[0, 0]) for label in labels[enough].unique()]


def described(prepared: Prepared, result: Trace, place: int | None = None) -> Record:
    """The query in words, and both ends of the ranking: row in the split, score, and the line's beginning."""
    values = result["pretrain"].values
    asked: dict[str, Any] = {"query": "the mean loss over the test tweets"}
    if place is not None:
        asked = {
            "query": without_names(prepared.data.tests.texts[place]),
            "label": int(prepared.query.data.tensors[1][place]),
        }
    return {**asked, "mean_absolute_score": values.abs().mean().item(), **ends(values, prepared.data.general, SHOWN)}
