"""What is being traced: a loss of the last stage's model on some examples."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.objectives.objective import Objective, PlainLoss, as_objective
from stagetrace.progress import Progress
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.data import Examples, positions
from stagetrace.stages.gradient import Gradient, mean_gradient
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params
from stagetrace.stages.stage import check_count
from stagetrace.tracing.query_gradients import query_gradients

WHERE = "the query"


@final
@dataclass(frozen=True, eq=False)
class Query:
    """The loss whose causes are traced: the last stage's model on these examples.

    Args:
        data: a map-style data set of query examples.
        objective: the query loss; None takes the last stage's objective.
        reduction: "mean" or "sum" over the query examples give one score per training example; "none" gives one row of
            scores per query example, `[n_queries, n_examples]`, and one linear solve per query and stage.
        batch_size: query examples evaluated at once.
        collate: list of examples -> batch; None takes the last stage's.
        workers: processes that load data, where a pass over it takes more than a second; 0 loads in this one.

    Raises:
        DescriptionError: an argument is of the wrong kind.
        DataError: the data set is empty.

    Example:
        >>> Query([(1.0, 0.0)], reduction="sum").reduction
        'sum'
    """

    data: Any
    objective: Objective | PlainLoss | None = field(kw_only=True, default=None)
    reduction: Literal["mean", "sum", "none"] = field(kw_only=True, default="mean")
    batch_size: int = field(kw_only=True, default=256)
    collate: Callable[[list[Any]], Any] | None = field(kw_only=True, default=None)
    workers: int = field(kw_only=True, default=0)

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum", "none"):
            refuse(f"{WHERE}: reduction must be 'mean', 'sum' or 'none', got {self.reduction!r}")
        check_count(self.batch_size, f"{WHERE}: batch_size")
        check_count(self.workers, f"{WHERE}: workers", least=0)
        Examples(self.data, self.batch_size, self.collate, self.workers, WHERE)
        if self.objective is not None:
            as_objective(self.objective, WHERE)

    @property
    def rows(self) -> int | None:
        """Rows of scores: None for one score per training example, else the number of query examples."""
        return len(self.data) if self.reduction == "none" else None

    def reduce(self, values: Tensor) -> Tensor:
        """`[n_queries, ...]` reduced as the query's losses are: `[...]`, or unchanged with "none"."""
        return {"mean": values.mean(dim=0), "sum": values.sum(dim=0), "none": values}[self.reduction]

    def risk(self, last: BoundStage) -> Risk:
        """The query's losses at the last stage's parameters."""
        objective = last.stage.loss if self.objective is None else as_objective(self.objective, WHERE)
        examples = Examples(self.data, self.batch_size, self.collate or last.stage.collate, self.workers, WHERE)
        return last.risk_of(WHERE, objective, examples)

    def loss(self, last: BoundStage, values: Params | None = None) -> Tensor:
        """The reduced loss, float64 on the CPU, in the precision of the parameters.

        values: of all the stage's parameters, its own by default.
        """
        risk = self.risk(last).exact
        values = values or {**risk.trained_values, **risk.inherited_values}
        trained, inherited = ({name: values[name] for name in space.names} for space in (risk.trained, risk.inherited))
        losses = torch.empty(len(risk.examples), dtype=torch.float64)
        with torch.no_grad():
            for batch in risk.read_by_size():
                losses[positions(batch.indices)] = risk.losses(trained, inherited, batch).double().cpu()
        return self.reduce(losses)

    def gradient(self, last: BoundStage, progress: Progress | None = None) -> Gradient:
        """d(query loss) at the last stage, in all that a `Gradient` has: one column, or one per query with "none".

        Raises:
            DataError: a query loss is NaN or infinite, or not one per example.
        """
        risk = self.risk(last).beside(last.statistics_values)
        if self.reduction == "none":
            found = query_gradients(risk, progress)
        else:
            found = mean_gradient(risk, reduction=self.reduction, progress=progress)
        return Gradient(found.trained, *found.inherited.split((last.inherited.size, last.statistics.size)))
