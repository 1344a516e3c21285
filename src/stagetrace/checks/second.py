"""Is the second derivative by autograd that of the loss? Judged by differences of the gradient.

Along a direction v in the parameters that were trained, the gradient in all parameters changes by `H v` there and by
the coupling `(d2L / dW dTheta) v` in those that were kept: the two products that a trace is made of.
"""

from typing import final

import torch
from torch import Tensor

from stagetrace.checks.derivative import AGREED, JUDGED, direction_of
from stagetrace.checks.finding import Level
from stagetrace.curvature.chunk import check_differentiable_again
from stagetrace.errors import first_line
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params

STEPS = (1e-5, 1e-4, 1e-6)
"""Of the differences, in float64: the first that is sure of itself counts."""


def second_derivative_is_right(risk: Risk, batch: Batch) -> tuple[Level, str]:
    """Compare products by autograd with differences of the gradient; only float64 can judge them.

    Returns:
        How much it matters, and what was found: a warning where a second derivative is not that of the gradient.
    """
    if risk.own.dtype != torch.float64:
        return Level.NOTE, "second derivatives are not judged: the model cannot be evaluated in float64"
    gradients = _Gradients(risk, batch)
    along = direction_of(risk.own_values)
    try:
        product = gradients.product(along)
    except (RuntimeError, NotImplementedError) as cause:
        return Level.NOTE, f"no second derivative in reverse mode ({first_line(cause)})"
    doubt = float("inf")
    for step in STEPS:
        whole, half = gradients.difference(along, step), gradients.difference(along, step / 2)
        size = float(torch.linalg.vector_norm(product))
        doubt = float(torch.linalg.vector_norm(half - whole))
        gap = float(torch.linalg.vector_norm((4 * half - whole) / 3 - product))
        floor = max(size, 1e-6 * gradients.size)
        if gap - 3 * doubt <= AGREED * floor:
            return Level.OK, "second derivatives are those of the gradient, by differences"
        if doubt <= JUDGED / 5 * gap:
            return Level.WARNING, (
                "the second derivative that autograd gives is not that of the gradient: they differ by "
                f"{gap / max(floor, size):.1%} along a random direction (a function whose backward cannot be "
                "differentiated?); write that operation in plain PyTorch, or read Hessian and coupling with care"
            )
    return Level.NOTE, "the loss is not smooth enough for differences to judge its second derivatives"


@final
class _Gradients:
    """The summed losses' gradient `[own.size + inherited.size]` around the stage's parameters."""

    def __init__(self, risk: Risk, batch: Batch) -> None:
        self.risk, self.batch = risk, batch
        self.size = float(torch.linalg.vector_norm(self.at({}, 0.0)))

    def at(self, along: Params, step: float) -> Tensor:
        own = {n: v + step * along[n] if along else v for n, v in self.risk.own_values.items()}
        leaves, total = self._total(own)
        found = torch.autograd.grad(total, leaves, materialize_grads=True) if total.requires_grad else leaves
        return _flat(found).detach()

    def difference(self, along: Params, step: float) -> Tensor:
        return (self.at(along, step) - self.at(along, -step)) / (2 * step)

    def product(self, along: Params) -> Tensor:
        """By reverse mode twice: the derivative of `<dL/dTheta, v>` in all parameters."""
        leaves, total = self._total(self.risk.own_values)
        own = leaves[: len(self.risk.own_values)]
        slopes = torch.autograd.grad(total, own, create_graph=True, materialize_grads=True)
        check_differentiable_again(slopes)
        projected = torch.stack([(s * v).sum() for s, v in zip(slopes, along.values(), strict=True)]).sum()
        if not projected.requires_grad:
            return torch.zeros_like(_flat(leaves)).detach()
        return _flat(torch.autograd.grad(projected, leaves, materialize_grads=True)).detach()

    def _total(self, own: Params) -> tuple[tuple[Tensor, ...], Tensor]:
        ours = {name: value.detach().clone().requires_grad_() for name, value in own.items()}
        theirs = {n: v.detach().clone().requires_grad_() for n, v in self.risk.inherited_values.items()}
        with torch.enable_grad():
            return (*ours.values(), *theirs.values()), self.risk.losses(ours, theirs, self.batch).sum()


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([(t.to_dense() if t.is_sparse else t).reshape(-1) for t in tensors])
