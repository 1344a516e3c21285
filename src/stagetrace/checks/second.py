"""Is the second derivative by autograd that of the loss? Judged by differences of the gradient.

Along a direction v in the parameters that were trained, the gradient in all parameters changes by `H v` there and by
the coupling `(d2L / dW dTheta) v` in those that were kept: the two products that a trace is made of.
"""

from typing import final

import torch
from torch import Tensor, nn

from stagetrace.checks.derivative import AGREED, JUDGED, beside_padding, direction_of
from stagetrace.checks.finding import Level
from stagetrace.curvature.chunk import check_differentiable_again, hessian_anew
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
    along = beside_padding(direction_of(risk.own_values), risk.evaluation.model)
    try:
        product = gradients.product(along)
    except (RuntimeError, NotImplementedError) as cause:
        return Level.NOTE, f"no second derivative in reverse mode ({first_line(cause)})"
    parts = {"Hessian": slice(0, risk.own.size), "coupling": slice(risk.own.size, None)}
    unsure: list[str] = []
    for what, part in parts.items():
        judged = _judge(gradients, along, product, part)
        if (
            judged and what == "Hessian" and judged != UNSURE
        ):  # recomputation in the backward pass spoils reverse mode only
            judged = (
                _judge(gradients, along, gradients.forward(along), part) if gradients.has_forward(along) else judged
            )
        if judged == UNSURE:
            unsure.append(what)
        elif judged:
            return Level.WARNING, (
                f"the second derivative that autograd gives ({what}) is not that of the gradient: they differ by "
                f"{judged} along a random direction (a function whose backward cannot be differentiated?); write that "
                "operation in plain PyTorch, or read Hessian and coupling with care"
            )
    if unsure:
        return Level.NOTE, "the loss is not smooth enough for differences to judge its second derivatives"
    return Level.OK, "second derivatives are those of the gradient, by differences"


UNSURE = "unsure"


def _judge(gradients: "_Gradients", along: Params, product: Tensor, part: slice) -> str:
    """How far a part of the product is from differences, in percent; empty where they agree."""
    ours = product[part]
    if ours.numel() == 0:
        return ""
    size, gap, doubt = float(torch.linalg.vector_norm(ours)), 0.0, 0.0
    floor = max(size, 1e-6 * gradients.size)
    for step in STEPS:
        whole, half = (gradients.difference(along, h)[part] for h in (step, step / 2))
        doubt = float(torch.linalg.vector_norm(half - whole))
        gap = float(torch.linalg.vector_norm((4 * half - whole) / 3 - ours))
        if gap - 3 * doubt <= AGREED * floor:
            return ""
        if doubt <= JUDGED / 5 * gap:
            return f"{gap / floor:.1%}"
    return UNSURE


@final
class _Gradients:
    """The summed losses' gradient `[own.size + inherited.size]` around the stage's parameters."""

    def __init__(self, risk: Risk, batch: Batch) -> None:
        self.risk, self.batch = risk, batch
        self.size = float(torch.linalg.vector_norm(self.at({}, 0.0)))

    def at(self, along: Params, step: float) -> Tensor:
        own = {n: v + step * along[n] if along else v for n, v in self.risk.own_values.items()}
        ours, theirs = _leaves(own), _leaves(self.risk.inherited_values)
        leaves, content = (*ours.values(), *theirs.values()), self.batch.content

        def slope(model: nn.Module) -> Tensor:  # within the call: what is computed again going back sees these values
            outputs = self.risk.objective.outputs(model, content)
            total = self.risk.objective.losses(outputs, content).sum()
            return _flat(torch.autograd.grad(total, leaves, materialize_grads=True)).detach()

        with torch.enable_grad():
            return self.risk.evaluation({**theirs, **ours}, slope)

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

    def has_forward(self, along: Params) -> bool:
        """Whether the gradient has a derivative in forward mode."""
        try:
            self.forward(along)
        except (RuntimeError, NotImplementedError):
            return False
        return True

    def forward(self, along: Params) -> Tensor:
        """By forward mode over the gradient, in the own parameters; zeros elsewhere."""
        own = hessian_anew(self.risk, self.batch)(self.risk.own.flatten(along).unsqueeze(1)).squeeze(1)
        return torch.cat([own, own.new_zeros(self.risk.inherited.size)]).detach()

    def _total(self, own: Params) -> tuple[tuple[Tensor, ...], Tensor]:
        ours, theirs = _leaves(own), _leaves(self.risk.inherited_values)
        with torch.enable_grad():
            return (*ours.values(), *theirs.values()), self.risk.losses(ours, theirs, self.batch).sum()


def _leaves(values: Params) -> Params:
    return {name: value.detach().clone().requires_grad_() for name, value in values.items()}


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([(t.to_dense() if t.is_sparse else t).reshape(-1) for t in tensors])
