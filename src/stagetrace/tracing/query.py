"""What is being traced: a loss of the last stage's model on some examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.utils.data import Subset

from stagetrace.errors import refuse
from stagetrace.objectives.objective import Objective, PlainLoss, as_objective
from stagetrace.progress import Progress
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Collate, Examples, positions
from stagetrace.stages.gradient import Gradient, mean_gradient
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params
from stagetrace.stages.stage import check_count
from stagetrace.tracing.query_gradients import query_gradients

WHERE = "the query"
CONTRAST = "the query's contrast"


@final
@dataclass(frozen=True, eq=False)
class Query:
    """The loss whose causes are traced: the last stage's model on these examples.

    Args:
        data: a map-style data set of query examples.
        objective: the query loss; None takes the last stage's objective.
        reduction: "mean" or "sum" over the query examples give one score per training example; "none" gives one row of
            scores per query example, `[n_queries, n_examples]`, and one linear solve per query and stage.
        contrast: a second data set; the query loss is then that of `data` less that of `contrast`, each reduced by
            itself: this completion rather than that one, this behaviour against a neutral set. A positive score still
            is harmful: more of the example raises `loss(data) - loss(contrast)`, so that `data` becomes less likely
            beside `contrast`. With "none" row k is the loss of `data[k]` less that of `contrast[k]`.
        batch_size: query examples evaluated at once.
        collate: list of examples -> batch; None takes the last stage's.
        workers: processes that load data, where a pass over it takes more than a second; 0 loads in this one.

    Raises:
        DescriptionError: an argument is of the wrong kind; data and contrast do not pair up for "none".
        DataError: the data set is empty, or the contrast is.

    Example:
        >>> Query([(1.0, 0.0)], reduction="sum").reduction
        'sum'
        >>> Query([(1.0, 0.0)], contrast=[(1.0, 1.0), (2.0, 1.0)])
        Query(1 example, contrast of 2, reduction 'mean')
    """

    data: Any
    objective: Objective | PlainLoss | None = field(kw_only=True, default=None)
    reduction: Literal["mean", "sum", "none"] = field(kw_only=True, default="mean")
    contrast: Any = field(kw_only=True, default=None)
    batch_size: int = field(kw_only=True, default=256)
    collate: Callable[[list[Any]], Any] | None = field(kw_only=True, default=None)
    workers: int = field(kw_only=True, default=0)

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum", "none"):
            refuse(f"{WHERE}: reduction must be 'mean', 'sum' or 'none', got {self.reduction!r}")
        check_count(self.batch_size, f"{WHERE}: batch_size")
        check_count(self.workers, f"{WHERE}: workers", least=0)
        if isinstance(self.contrast, Query):
            refuse(f"{CONTRAST} is a Query; give its examples alone: contrast=other.data")
        first, *contrast = self.sides(self.collate)
        if contrast and self.reduction == "none" and len(contrast[0]) != len(first):
            refuse(
                f"{CONTRAST} has {len(contrast[0]):,} examples for the query's {len(first):,}, and with "
                "reduction='none' each query example has its own; give as many, in the same order, or reduction='mean'"
            )
        if self.objective is not None:
            as_objective(self.objective, WHERE)

    def __repr__(self) -> str:
        count = f"{len(self.data):,} example{'s' if len(self.data) != 1 else ''}"
        contrast = "" if self.contrast is None else f", contrast of {len(self.contrast):,}"
        return f"Query({count}{contrast}, reduction {self.reduction!r})"

    def each(self) -> "Query":
        """Each of its examples by itself, with its own contrast where it has one.

        Raises:
            DescriptionError: the contrast is that of all examples together.
        """
        if self.contrast is not None and self.reduction != "none":
            refuse(
                f"{CONTRAST} is taken off the loss of all query examples together, not of each; for single ones "
                "describe the query with reduction='none' and a contrast for each example, or without contrast="
            )
        return replace(self, reduction="none")

    def each_of(self, indices: Sequence[int]) -> "Query":
        """Some of its examples, as `each` has them."""
        each = self.each()
        contrast = None if self.contrast is None else Subset(self.contrast, indices)
        return replace(each, data=Subset(self.data, indices), contrast=contrast)

    @property
    def rows(self) -> int | None:
        """Rows of scores: None for one score per training example, else the number of query examples."""
        return len(self.data) if self.reduction == "none" else None

    def reduce(self, values: Tensor) -> Tensor:
        """`[n_queries, ...]` reduced as the query's losses are: `[...]`, or unchanged with "none"."""
        return {"mean": values.mean(dim=0), "sum": values.sum(dim=0), "none": values}[self.reduction]

    def risk(self, last: BoundStage) -> Risk:
        """The losses of `data` at the last stage's parameters, without the contrast's."""
        return self.risks(last)[0]

    def risks(self, last: BoundStage) -> tuple[Risk, ...]:
        """The losses of `data`, and those of the contrast where there is one: the query's are the first less these."""
        objective = last.stage.loss if self.objective is None else as_objective(self.objective, WHERE)
        sides = self.sides(self.collate or last.stage.collate)
        return tuple(last.risk_of(examples.where, objective, examples) for examples in sides)

    def sides(self, collate: Collate | None) -> tuple[Examples, ...]:
        """The examples of `data`, and those of the contrast where there is one, collated by `collate`."""
        data = {WHERE: self.data} | ({} if self.contrast is None else {CONTRAST: self.contrast})
        return tuple(Examples(each, self.batch_size, collate, self.workers, where) for where, each in data.items())

    def loss(self, last: BoundStage, values: Params | None = None) -> Tensor:
        """The reduced loss, float64 on the CPU, in the precision of the parameters.

        values: of all the stage's parameters, its own by default.
        """
        first, *contrast = (self.reduce(_losses(risk.exact, values)) for risk in self.risks(last))
        return first - contrast[0] if contrast else first

    def gradient(self, last: BoundStage, progress: Progress | None = None) -> Gradient:
        """d(query loss) at the last stage, in all that a `Gradient` has: one column, or one per query with "none".

        Raises:
            DataError: a query loss is NaN or infinite, or not one per example.
        """
        first, *contrast = (self._gradient(risk, last, progress) for risk in self.risks(last))
        return first - contrast[0] if contrast else first

    def _gradient(self, losses: Risk, last: BoundStage, progress: Progress | None) -> Gradient:
        """That of one data set's losses."""
        risk = losses.beside(last.statistics_values)
        if self.reduction == "none":
            found = query_gradients(risk, progress)
        else:
            found = mean_gradient(risk, reduction=self.reduction, progress=progress)
        return Gradient(found.trained, *found.inherited.split((last.inherited.size, last.statistics.size)))


def _losses(risk: Risk, values: Params | None) -> Tensor:
    """Of every example, `[n]` in float64; at these values of all the stage's parameters, its own by default."""
    values = values or {**risk.trained_values, **risk.inherited_values}
    trained, inherited = ({name: values[name] for name in space.names} for space in (risk.trained, risk.inherited))
    losses = torch.empty(len(risk.examples), dtype=torch.float64)
    with torch.no_grad():
        for batch in risk.read_by_size():
            losses[positions(batch.indices)] = risk.losses(trained, inherited, batch).double().cpu()
    return losses
