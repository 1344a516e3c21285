"""The gradient of every query: layer by layer where taps cover the model, else as `stages.gradient` has it.

Both differentiate in the trained and in the inherited parameters; the running statistics that a recorded training
follows are no layer's parameters, and leave the taps out.
"""

from dataclasses import replace
from typing import final

import torch

from stagetrace.errors import DataError, DifferentiationError
from stagetrace.progress import Progress
from stagetrace.stages.data import Batch
from stagetrace.stages.gradient import (
    FEW,
    Gradient,
    collected,
    each_gradient,
    explain_not_finite,
    fitting_gradients,
    probe_of_gradients,
    same_gradients,
)
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import ParameterSpace
from stagetrace.taps import Tapped, gradient_rows, tap, uncovered
from stagetrace.tracing.room import fitting

__all__ = ["query_gradients"]


def query_gradients(risk: Risk, progress: Progress | None = None) -> Gradient:
    """The gradient of every example's loss, one column per example; sharded over processes.

    Raises:
        DataError: a loss is NaN or infinite (the example is named), or a gradient is.
    """
    if len(risk.examples) <= FEW or not risk.examples.batch_size > 1:
        return each_gradient(risk, progress)
    together = _Together.of(risk)
    probe = probe_of_gradients(risk)
    if together is None or not same_gradients(risk, probe, together):
        return each_gradient(risk, progress)
    size = min(fitting_gradients(risk), fitting(together.tapped, probe))
    return collected(risk, together, size, progress)


@final
class _Together:
    """Gradients of a batch in both kinds of parameters, layer by layer."""

    def __init__(self, tapped: Tapped) -> None:
        self.tapped = tapped

    @staticmethod
    def of(risk: Risk) -> "_Together | None":
        """None where the taps do not cover all parameters."""
        model = risk.evaluation.model
        if not set(risk.inherited.names) <= {name for name, _ in model.named_parameters()}:
            return None
        values = {**risk.trained_values, **risk.inherited_values}
        whole = replace(
            risk,
            trained=ParameterSpace.of(values),
            trained_values=values,
            inherited=ParameterSpace.of({}, like=next(iter(values.values()))),
            inherited_values={},
        )
        try:
            tapped = tap(whole)
        except (DataError, DifferentiationError):
            return None  # one by one says which example, or why
        return None if uncovered(tapped) else _Together(tapped)

    def __call__(self, risk: Risk, batch: Batch) -> Gradient:
        losses, rows = gradient_rows(self.tapped, batch)
        if not bool(torch.isfinite(losses.sum() + rows.sum())):
            explain_not_finite(risk, batch)
        parts = rows.mT.to(risk.trained.dtype).split((risk.trained.size, risk.inherited.size))
        return Gradient(*parts)
