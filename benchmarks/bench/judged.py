"""How good a row's scores are: against the exact ones, and against retraining."""

from typing import Any

from torch import Tensor

from benchmarks.bench.measured import Measured
from benchmarks.bench.references import Reference, References
from benchmarks.bench.truth import Truth

YARDSTICK = "G + 0.01"
"""The system whose exact scores all are compared with, whatever they claim."""
TOP = 100


def judged(row: Measured, references: References, truth: Truth) -> dict[str, Any]:
    """error of the solve, of the scores: relative, against the exact ones of the system that the row claims to solve.

    r, recall@100: over the examples, with the exact scores of `G + 0.01`; median and mean over queries.
    r with retraining: over the groups, of what the scores add up to and the change of the mean loss; for several
    queries the mean over them of Spearman's correlation with each one's change (the linear datamodelling score).
    """
    scores = row.scores
    if scores is None:
        return {}
    found: dict[str, Any] = {}
    claimed, solution = row.line.get("system"), row.solution
    reference = None if claimed is None else _reference(references, claimed)
    yardstick = references.of(YARDSTICK)
    assert yardstick is not None
    scores = scores[: len(yardstick.scores)].double()
    if reference is not None:
        found["error of the scores"] = _relative(scores, reference.scores)
        if solution is not None:
            found["error of the solve"] = _relative(solution[:, : len(scores)].mT, reference.solution.mT)
    found |= compared(scores, yardstick.scores)
    found["r with retraining"] = foreseen(scores, truth)
    return found


def _reference(references: References, system: str) -> Reference | None:
    try:
        return references.of(system)
    except ValueError:
        return None


def _relative(one: Tensor, exact: Tensor) -> float:
    """The worst query's."""
    return float(((one - exact).norm(dim=1) / exact.norm(dim=1)).max())


def compared(scores: Tensor, exact: Tensor) -> dict[str, float]:
    """Median of Pearson's r over queries, and the mean share of the most harmful examples in common.

    Example:
        >>> both = torch.arange(300.0).repeat(2, 1)
        >>> compared(both, 3 * both)
        {'r': 1.0, 'recall@100': 1.0}
    """
    k = min(TOP, scores.shape[1])
    pairs = zip(scores.topk(k).indices.tolist(), exact.topk(k).indices.tolist(), strict=True)
    shared = [len(set(a) & set(b)) / k for a, b in pairs]
    return {"r": round(float(_pearson(scores, exact).median()), 6), "recall@100": sum(shared) / len(shared)}


def foreseen(scores: Tensor, truth: Truth) -> float:
    """Of one query Pearson's r with the change of the mean loss; of several the mean Spearman's, query by query.

    Example:
        >>> members = torch.eye(4).bool()
        >>> effects = torch.tensor([[3.0, 1.0, -2.0, 0.5]])
        >>> foreseen(-4 * effects, Truth(members, effects.mT[None].double()))
        1.0
    """
    predicted = -(scores @ truth.members.mT.to(scores.dtype)) / scores.shape[1]
    true = truth.mean.mT.to(predicted.dtype)
    if len(scores) == 1:
        return round(float(_pearson(predicted, true[:1])[0]), 6)
    few = min(len(scores), len(true) - 1)
    ranked = [each.argsort(dim=1).argsort(dim=1).double() for each in (predicted[:few], true[1 : few + 1])]
    return round(float(_pearson(*ranked).mean()), 6)


def _pearson(one: Tensor, other: Tensor) -> Tensor:
    """Row by row."""
    a, b = (each - each.mean(dim=1, keepdim=True) for each in (one.double(), other.double()))
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
