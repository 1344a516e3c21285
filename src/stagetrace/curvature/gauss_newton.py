"""Gauss-Newton products of one chunk, `J' H_out J v`: see `chunk.py` for the ways and what they cost."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from stagetrace.curvature.chunk import Product, by_columns, check_differentiable_again, inner, traced
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params
from stagetrace.stages.tangent import directional

__all__ = [
    "MODES_APART",
    "OutputGraph",
    "TangentGraph",
    "check_adjoint",
    "forward_tangent",
    "gauss_newton_by_reverse",
    "gauss_newton_linearised",
    "gauss_newton_retained_graph",
]

MODES_APART = 0.05
"""How far forward and reverse mode may be apart, over the product of the sizes: above rounding in half precision."""


def gauss_newton_linearised(risk: Risk, batch: Batch) -> Product:
    """`J' H_out J v` with the tangent map J traced once and the graph for J' retained."""
    function = _outputs(risk, batch)
    outputs, tangent = traced(function, risk.trained_values, risk.rounding)
    _, transposed = _pulled(function, risk.trained_values)
    return by_columns(risk, lambda v: transposed(_output_curvature(risk, batch, outputs, tangent(v))))


def gauss_newton_retained_graph(risk: Risk, batch: Batch) -> Product:
    """`J' H_out J v`: `J v` by forward mode, the rest on the retained graphs of the outputs and of the loss at them."""
    graph = OutputGraph(risk, batch)
    compared = False

    def product(vector: Params) -> Params:
        nonlocal compared
        tangent = forward_tangent(risk, batch, vector)
        curved = graph.curved(tangent)
        found = graph.pulled(curved)
        if not compared:
            check_adjoint(tangent, curved, vector, found)
            compared = True
        return found

    return by_columns(risk, product, batched=False)


def forward_tangent(risk: Risk, batch: Batch, vector: Params) -> Tensor:
    """`J v` by forward mode, with the outputs computed beside it."""
    with torch.no_grad():
        return directional(_outputs(risk, batch), risk.trained_values, vector)[1]


def check_adjoint(tangent: Tensor, cotangent: Tensor, vector: Params, pulled: Params) -> None:
    """Refuse a forward mode that is not the reverse mode's transpose: `<J v, c> = <v, J' c>`.

    Raises:
        RuntimeError: they are apart; a derivative rule can be wrong and say nothing.
    """
    forward = _dot(tangent, cotangent)
    reverse = sum(_dot(value, pulled[name]) for name, value in vector.items())
    size = float(torch.linalg.vector_norm(tangent) * torch.linalg.vector_norm(cotangent))
    if abs(forward - reverse) > MODES_APART * size:
        raise RuntimeError("forward mode gives another derivative than reverse mode")


def _dot(left: Tensor, right: Tensor) -> float:
    """Without a copy, which would be as large as the parameters."""
    wide = torch.promote_types(left.dtype, torch.float32)
    return float(torch.dot(left.reshape(-1).to(wide), right.reshape(-1).to(wide)))


def gauss_newton_by_reverse(risk: Risk, batch: Batch) -> Product:
    """`J' H_out J v` without forward mode."""
    graph = OutputGraph(risk, batch)
    tangent = TangentGraph(graph)
    return by_columns(risk, lambda v: graph.pulled(graph.curved(tangent(v))), batched=False)


@final
class OutputGraph:
    """A chunk's outputs `z`, and two linear maps on retained graphs: their `J'`, and the losses' second derivative."""

    def __init__(self, risk: Risk, batch: Batch) -> None:
        self._trained = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
        self.inputs, self.names = tuple(self._trained.values()), tuple(self._trained)
        with torch.enable_grad():
            self.outputs = risk.outputs(self._trained, risk.inherited_values, batch)
            self._at = self.outputs.detach().requires_grad_()
            total = risk.reduce(self._at, batch).sum()
            self._slope = (
                torch.autograd.grad(total, self._at, create_graph=True, materialize_grads=True)[0]
                if total.requires_grad
                else torch.zeros_like(self._at)
            )
        check_differentiable_again([self._slope])

    def curved(self, tangent: Tensor) -> Tensor:
        """`H_out z'`: the losses' second derivative at the outputs, times a tangent; small next to the model's work."""
        along = inner([self._slope], [tangent])
        if along is None:  # a loss linear in the outputs
            return torch.zeros_like(tangent)
        return torch.autograd.grad(along, self._at, retain_graph=True, materialize_grads=True)[0]

    def pulled(self, cotangent: Tensor) -> Params:
        """`J' c`, by name."""
        along = inner([self.outputs], [cotangent])
        if along is None:  # outputs without the parameters
            return {name: torch.zeros_like(value) for name, value in self._trained.items()}
        rows = torch.autograd.grad(along, self.inputs, retain_graph=True, materialize_grads=True)
        return dict(zip(self._trained, rows, strict=True))


@final
class TangentGraph:
    """`J v` on a retained graph, without forward mode: the derivative in u of `<J' u, v>`, which is linear in u."""

    def __init__(self, graph: OutputGraph) -> None:
        self._names, self._u = graph.names, torch.zeros_like(graph.outputs, requires_grad=True)
        along = inner([graph.outputs], [self._u])
        self._pulled: tuple[Tensor, ...] | None = None
        if along is not None:  # else outputs without the parameters
            self._pulled = torch.autograd.grad(along, graph.inputs, create_graph=True, materialize_grads=True)
            check_differentiable_again(self._pulled)

    def __call__(self, vector: Params) -> Tensor:
        """The outputs' tangent."""
        along = None if self._pulled is None else inner(self._pulled, [vector[name] for name in self._names])
        if along is None:
            return torch.zeros_like(self._u)
        return torch.autograd.grad(along, self._u, retain_graph=True, materialize_grads=True)[0]


def _pulled(function: Callable[[Params], Tensor], at: Params) -> tuple[Tensor, Callable[[Tensor], Params]]:
    """The value of a function and its transposed derivative at a point; the graph is retained."""
    value, transposed, *_ = vjp(function, at)
    return value, lambda cotangent: transposed(cotangent)[0]


def _outputs(risk: Risk, batch: Batch) -> Callable[[Params], Tensor]:
    return lambda trained: risk.outputs(trained, risk.inherited_values, batch)


def _output_curvature(risk: Risk, batch: Batch, outputs: Tensor, tangent: Tensor) -> Tensor:
    """The losses' second derivative at the outputs, times an output tangent: small next to the model's passes."""
    return jvp(grad(lambda z: risk.reduce(z, batch).sum()), (outputs,), (tangent,))[1]
