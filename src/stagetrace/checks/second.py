"""Is the second derivative by autograd that of the loss? Judged by differences of the gradient.

Along a direction v in the parameters that were trained, the gradient in all parameters changes by `H v` there and by
the coupling `(d2L / dW dTheta) v` in those that were kept: the two products that a trace is made of.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from stagetrace.checks.dependence import direction_of, leaves_of
from stagetrace.checks.derivative import AGREED, JUDGED, beside_padding
from stagetrace.checks.finding import Level
from stagetrace.curvature.chunk import hessian_recomputed, hessian_retained_graph
from stagetrace.curvature.mixed import coupling_of
from stagetrace.errors import StagetraceError
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params

STEPS = (1e-5, 1e-4, 1e-6)
"""Of the differences, in float64: the first that is sure of itself counts."""

Way = Callable[[], Tensor]
"""Computes a product with the direction."""


def second_derivative_is_right(risk: Risk, batch: Batch) -> tuple[Level, str]:
    """Compare products by autograd with differences of the gradient; only float64 can judge them.

    batch: two short examples are enough. What is judged are the operations, each by a direction that is random in every
        entry: a long example goes through the same ones, and all of a product's work grows with its length.

    Returns:
        How much it matters, and what was found: a warning where a second derivative is not that of the gradient.
    """
    if risk.trained.dtype != torch.float64:
        return Level.NOTE, "second derivatives are not judged: the model cannot be evaluated in float64"
    gradients = _Gradients(risk, batch, beside_padding(direction_of(risk.trained_values), risk.evaluation.model))
    along = risk.trained.flatten(gradients.along).unsqueeze(1)
    products: dict[str, tuple[slice, tuple[Way, ...]]] = {
        "Hessian": (
            slice(0, risk.trained.size),
            (
                lambda: hessian_retained_graph(risk, batch)(along)[:, 0],
                lambda: hessian_recomputed(risk, batch)(along)[:, 0],
            ),
        ),
        "coupling": (
            slice(risk.trained.size, None),
            (lambda: risk.inherited.flatten(coupling_of(risk, batch, gradients.along)),),
        ),
    }
    unsure: list[str] = []
    for what, (part, ways) in products.items():
        gap = _gap(gradients, part, ways)
        if gap is None:
            unsure.append(what)
        elif gap:
            return Level.WARNING, (
                f"the second derivative that autograd gives ({what}) is not that of the gradient: they differ by "
                f"{gap:.1%} along a random direction (a function whose backward cannot be differentiated?); write that "
                "operation in plain PyTorch, or read Hessian and coupling with care"
            )
    if unsure:
        return Level.NOTE, f"not judged ({' and '.join(unsure)}): not there, or too rough for differences"
    return Level.OK, "second derivatives are those of the gradient, by differences"


def _gap(gradients: "_Gradients", part: slice, ways: tuple[Way, ...]) -> float | None:
    """How far the nearest way is from differences, over its size; 0 where one agrees, None where none can be judged."""
    if gradients.at(0.0)[part].numel() == 0:
        return 0.0
    gaps: list[float] = []
    for way in ways:
        try:
            gap = _apart(gradients, part, way().detach())
        except (RuntimeError, NotImplementedError, StagetraceError):
            continue  # this way has no second derivative; the plan of the solve says so where none has
        if gap == 0.0:
            return gap
        if gap is not None:
            gaps.append(gap)
    return min(gaps, default=None)


def _apart(gradients: "_Gradients", part: slice, product: Tensor) -> float | None:
    floor = max(float(torch.linalg.vector_norm(product)), 1e-6 * gradients.size)
    for step in STEPS:
        whole, half = (gradients.difference(h)[part] for h in (step, step / 2))
        doubt = float(torch.linalg.vector_norm(half - whole))
        gap = float(torch.linalg.vector_norm((4 * half - whole) / 3 - product))  # the terms in step^2 cancel
        if gap - 3 * doubt <= AGREED * floor:
            return 0.0
        if doubt <= JUDGED / 5 * gap:
            return gap / floor
    return None


@final
class _Gradients:
    """The summed losses' gradient `[trained.size + inherited.size]`, along a direction in the trained parameters."""

    def __init__(self, risk: Risk, batch: Batch, along: Params) -> None:
        self.risk, self.batch, self.along = risk, batch, along
        self.size = float(torch.linalg.vector_norm(self.at(0.0)))

    def at(self, step: float) -> Tensor:
        ours = leaves_of({name: value + step * self.along[name] for name, value in self.risk.trained_values.items()})
        theirs, content = leaves_of(self.risk.inherited_values), self.batch.content
        leaves = (*ours.values(), *theirs.values())

        def slope(model: nn.Module) -> Tensor:  # within the call: what is computed again going back sees these values
            outputs = self.risk.objective.outputs(model, content)
            total = self.risk.objective.losses(outputs, content).sum()
            found = torch.autograd.grad(total, leaves, materialize_grads=True)
            return torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in found]).detach()

        with torch.enable_grad():
            return self.risk.evaluation({**theirs, **ours}, slope)

    def difference(self, step: float) -> Tensor:
        return (self.at(step) - self.at(-step)) / (2 * step)
