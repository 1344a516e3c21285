"""Second derivatives of the summed losses of one chunk of examples, times vectors: the ways to compute them.

Work per product, counted in gradients of the chunk (forward + backward):

    linearised            about 1.7, after the tangent map has been traced once; holds its intermediates
    retained graph        about 2.3, after one gradient; holds the graph; needs no forward mode
    recomputed forward    about 3.5, holds nothing: a tangent through forward and backward pass
    recomputed reverse    about 3.5 for one vector, 1.5 + 2k for k; holds nothing; needs no forward mode

All are exact and agree to rounding. A chunk is a function `[trained.size, k] -> [trained.size, k]`.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor
from torch.func import functionalize, grad, jvp, linearize, vjp, vmap
from torch.utils._pytree import tree_leaves

from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params

Product = Callable[[Tensor], Tensor]
"""`[trained.size, k] -> [trained.size, k]`: the chunk's summed second derivative times each column."""

Linear = Callable[[Params], Params]

T = TypeVar("T")


def hessian_linearised(risk: Risk, batch: Batch) -> Product:
    """The tangent map of the chunk's gradient, traced once: each product replays it without the primal part."""
    _, tangent = _traced(_gradient(risk, batch), risk.trained_values)
    return _by_columns(risk, tangent)


def hessian_recomputed(risk: Risk, batch: Batch) -> Product:
    """Forward-over-reverse, from scratch for each vector."""
    gradient = _gradient(risk, batch)
    return _by_columns(risk, lambda v: jvp(gradient, (risk.trained_values,), (v,))[1])


@final
@dataclass(frozen=True)
class GradientGraph:
    """A weighted sum of a chunk's losses: value, gradient, and products on the gradient's graph; vectors by name."""

    value: Tensor
    gradient: Params
    product: Linear


def hessian_retained_graph(risk: Risk, batch: Batch) -> Product:
    """Reverse-over-reverse on the retained graph of the gradient."""
    return _by_columns(risk, gradient_graph(risk, batch).product, batched=False)


def gradient_graph(risk: Risk, batch: Batch, weights: Tensor | None = None, *, checked: bool = True) -> GradientGraph:
    """The sum of the chunk's losses, each times its weight of `[batch]`, at the values of `risk`.

    checked: whether operations that are differentiable once are looked for, which takes as long as a small model.

    Raises:
        RuntimeError: an operation has no second derivative.
    """
    trained = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
    inputs = tuple(trained.values())
    with torch.enable_grad():
        losses = risk.losses(trained, risk.inherited_values, batch)
        total = losses.sum() if weights is None else weights @ losses
        if not total.requires_grad:  # a loss without the parameters
            return GradientGraph(total.detach(), *_nothing(trained))
        gradients = torch.autograd.grad(total, inputs, create_graph=True, materialize_grads=True)
    if checked:
        check_differentiable_again(gradients)

    def product(vector: Params) -> Params:
        tracked = [(g, vector[name]) for name, g in zip(trained, gradients, strict=True) if g.requires_grad]
        if not tracked:  # a loss linear in the parameters
            return {name: torch.zeros_like(value) for name, value in trained.items()}
        outputs, cotangents = zip(*tracked, strict=True)
        rows = torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, materialize_grads=True)
        return dict(zip(trained, rows, strict=True))

    return GradientGraph(
        total.detach(), {name: g.detach() for name, g in zip(trained, gradients, strict=True)}, product
    )


def _nothing(trained: Params) -> tuple[Params, Linear]:
    """The gradient and the products of a loss that does not depend on the parameters."""
    zeros = {name: torch.zeros_like(value) for name, value in trained.items()}
    return zeros, lambda vector: {name: torch.zeros_like(value) for name, value in vector.items()}


def gauss_newton_linearised(risk: Risk, batch: Batch) -> Product:
    """`J' H_out J v` with the tangent map J traced once and the graph for J' retained."""
    function = _outputs(risk, batch)
    outputs, tangent = _traced(function, risk.trained_values)
    _, transposed = _pulled(function, risk.trained_values)
    return _by_columns(risk, lambda v: transposed(_output_curvature(risk, batch, outputs, tangent(v))))


def gauss_newton_recomputed(risk: Risk, batch: Batch) -> Product:
    """`J' H_out J v` by one forward-mode and one reverse pass, from scratch for each vector."""
    function = _outputs(risk, batch)

    def product(vector: Params) -> Params:
        outputs, transposed = _pulled(function, risk.trained_values)
        tangent = jvp(function, (risk.trained_values,), (vector,))[1]
        return transposed(_output_curvature(risk, batch, outputs, tangent))

    return _by_columns(risk, product)


def gauss_newton_retained_graph(risk: Risk, batch: Batch) -> Product:
    """`J' H_out J v` without forward mode: `J v` is the derivative in u of `<J' u, v>`, which is linear in u."""
    trained = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
    inputs = tuple(trained.values())
    with torch.enable_grad():
        outputs = risk.outputs(trained, risk.inherited_values, batch)
        if not outputs.requires_grad:
            return torch.zeros_like
        u = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, inputs, u, create_graph=True, materialize_grads=True)
    check_differentiable_again(pulled)

    def product(vector: Params) -> Params:
        # J v = d/du <J' u, v>
        (tangent,) = torch.autograd.grad(
            pulled, u, [vector[name] for name in trained], retain_graph=True, materialize_grads=True
        )
        curved = _output_curvature_by_graph(risk, batch, outputs.detach(), tangent)
        rows = torch.autograd.grad(outputs, inputs, curved, retain_graph=True, materialize_grads=True)
        return dict(zip(trained, rows, strict=True))

    return _by_columns(risk, product, batched=False)


def _traced(function: Callable[[Params], T], at: Params) -> tuple[T, Callable[[Params], T]]:
    """The value of a function and its tangent map at a point, traced once and checked.

    Where a layer works in place (recurrent layers, attention) the tracer can silently record wrong views, or a buffer
    that the next call overwrites. Tracing the function without its in-place operations avoids that, but makes products
    slower by a quarter to a half, so it is done only where the plain trace is wrong.

    Raises:
        RuntimeError: neither trace is the tangent map.
    """
    for candidate in (function, functionalize(function, remove="mutations")):
        with warnings.catch_warnings():  # the tracer warns of its own bookkeeping
            warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
            value, tangent = linearize(candidate, at)
        if _is_tangent_of(tangent, function, at):
            return value, tangent
    raise RuntimeError("the traced derivative is wrong, since an operation works in place")


def _is_tangent_of(tangent: Callable[[Params], Any], function: Callable[[Params], Any], at: Params) -> bool:
    """Whether a traced tangent map agrees with forward mode; twice, since a wrong one may change with each call."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        along = {name: torch.randn(p.shape, generator=generator).to(p) for name, p in at.items()}
        pairs = zip(tree_leaves(jvp(function, (at,), (along,))[1]), tree_leaves(tangent(along)), strict=True)
        if any(_far_apart(expected, traced) for expected, traced in pairs):
            return False
    return True


def _far_apart(one: Tensor, other: Tensor) -> bool:
    if not one.numel():
        return False
    # a model may compute in single precision whatever its parameters are, and a wrong trace is wrong by far more
    rounding = max(torch.finfo(one.dtype).eps, torch.finfo(torch.float32).eps)
    return bool((one - other).abs().max() > rounding**0.5 * one.abs().max())


def check_differentiable_again(gradients: Iterable[Tensor]) -> None:
    """Refuse gradients through an operation that is marked as differentiable once.

    PyTorch puts a node that raises behind such an operation, and `torch.autograd.grad` passes it by: the derivative
    through the operation would silently be zero.

    Raises:
        RuntimeError: with PyTorch's words for it.
    """
    nodes, seen = [gradient.grad_fn for gradient in gradients], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("Error"):
            raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)


def _pulled(function: Callable[[Params], Tensor], at: Params) -> tuple[Tensor, Callable[[Tensor], Params]]:
    """The value of a function and its transposed derivative at a point; the graph is retained."""
    value, transposed, *_ = vjp(function, at)
    return value, lambda cotangent: transposed(cotangent)[0]


def _gradient(risk: Risk, batch: Batch) -> Linear:
    return grad(lambda trained: risk.losses(trained, risk.inherited_values, batch).sum())


def _outputs(risk: Risk, batch: Batch) -> Callable[[Params], Tensor]:
    return lambda trained: risk.outputs(trained, risk.inherited_values, batch)


def _output_curvature(risk: Risk, batch: Batch, outputs: Tensor, tangent: Tensor) -> Tensor:
    """The losses' second derivative at the outputs, times an output tangent: small next to the model's passes."""
    return jvp(grad(lambda z: risk.reduce(z, batch).sum()), (outputs,), (tangent,))[1]


def _output_curvature_by_graph(risk: Risk, batch: Batch, outputs: Tensor, tangent: Tensor) -> Tensor:
    z = outputs.requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(risk.reduce(z, batch).sum(), z, create_graph=True, materialize_grads=True)
    if not slope.requires_grad:
        return torch.zeros_like(tangent)
    return torch.autograd.grad(slope, z, tangent, materialize_grads=True)[0]


def _by_columns(risk: Risk, product: Linear, *, batched: bool = True) -> Product:
    """Lift a product of named tensors to columns of vectors.

    On an accelerator several columns go through one vectorised call. On the CPU the loop is faster: the passes are
    bound by arithmetic, and batching makes their tensors leave the cache (`benchmarks/products.py`: 32 ms against 19 ms
    a column, for 16 columns).
    """
    space = risk.trained

    def columns(vectors: Tensor) -> Tensor:
        if batched and vectors.is_cuda and vectors.shape[1] > 1:
            return space.flatten_columns(vmap(product)(space.unflatten_columns(vectors)))
        products = [space.flatten(product(space.unflatten(vector))) for vector in vectors.unbind(dim=1)]
        return torch.stack(products, dim=1).detach()

    return columns
