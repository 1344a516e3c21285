"""Second derivatives of the summed losses of one chunk of examples, times vectors: the ways to compute them.

Work per product, counted in gradients of the chunk (forward + backward):

                          Hessian                Gauss-Newton
    linearised            about 1.7              about 1.1                 after the tangent map has been traced once
    retained graph        about 2.2              about 1.6                 after one gradient, or one forward pass
    retained reverse      -                      about 1.45                after one gradient; see `probe.py`
    recomputed            about 3.3              about 2.2                 the same graph, made anew for each product

All are exact and agree to rounding. Without forward mode nothing can be traced, and Gauss-Newton costs about what the
Hessian does. A chunk is a function `[trained.size, k] -> [trained.size, k]`.

Only tracing goes through `torch.func`: its first derivative imports the compiler, and `torch.autograd.grad` with
cotangents of its own a system for algebra, a second and half a second. The other ways differentiate `inner`.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor
from torch.func import functionalize, grad, jvp, linearize, vmap
from torch.utils._pytree import tree_leaves

from stagetrace.stages.data import Batch
from stagetrace.stages.recomputing import kept
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import Params

Product = Callable[[Tensor], Tensor]
"""`[trained.size, k] -> [trained.size, k]`: the chunk's summed second derivative times each column."""

Linear = Callable[[Params], Params]

T = TypeVar("T")


def hessian_linearised(risk: Risk, batch: Batch) -> Product:
    """The tangent map of the chunk's gradient, traced once: each product replays it without the primal part."""
    _, tangent = traced(_gradient(risk, batch), risk.trained_values, risk.rounding)
    return by_columns(risk, tangent)


def hessian_recomputed(risk: Risk, batch: Batch) -> Product:
    """Forward-over-reverse, from scratch for each vector: about 4 gradients, so nothing but checks computes it."""
    gradient = _gradient(risk, batch)
    return by_columns(risk, lambda v: jvp(gradient, (risk.trained_values,), (v,))[1])


@final
@dataclass(frozen=True)
class GradientGraph:
    """A weighted sum of a chunk's losses: value, gradient, and products on the gradient's graph; vectors by name."""

    value: Tensor
    gradient: Params
    product: Linear


def hessian_retained_graph(risk: Risk, batch: Batch) -> Product:
    """Reverse-over-reverse on the retained graph of the gradient."""
    return by_columns(risk, gradient_graph(risk, batch).product, batched=False)


def gradient_graph(risk: Risk, batch: Batch, weights: Tensor | None = None, *, checked: bool = True) -> GradientGraph:
    """The sum of the chunk's losses, each times its weight of `[batch]`, at the values of `risk`.

    checked: whether operations that are differentiable once are looked for, which takes as long as a small model.

    Raises:
        RuntimeError: an operation has no second derivative.
    """
    trained = {name: value.detach().requires_grad_() for name, value in risk.trained_values.items()}
    inputs = tuple(trained.values())
    with torch.enable_grad(), kept():  # the graph of a gradient holds all activations
        losses = risk.losses(trained, risk.inherited_values, batch)
        total = losses.sum() if weights is None else weights @ losses
        if not total.requires_grad:  # a loss without the parameters
            return GradientGraph(total.detach(), *_nothing(trained))
        gradients = torch.autograd.grad(total, inputs, create_graph=True, materialize_grads=True)
    if checked:
        check_differentiable_again(gradients)

    def product(vector: Params) -> Params:
        along = inner(gradients, [vector[name] for name in trained])
        if along is None:  # a loss linear in the parameters
            return {name: torch.zeros_like(value) for name, value in trained.items()}
        rows = torch.autograd.grad(along, inputs, retain_graph=True, materialize_grads=True)
        return dict(zip(trained, rows, strict=True))

    return GradientGraph(
        total.detach(), {name: g.detach() for name, g in zip(trained, gradients, strict=True)}, product
    )


def _nothing(trained: Params) -> tuple[Params, Linear]:
    """The gradient and the products of a loss that does not depend on the parameters."""
    zeros = {name: torch.zeros_like(value) for name, value in trained.items()}
    return zeros, lambda vector: {name: torch.zeros_like(value) for name, value in vector.items()}


def inner(tensors: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Tensor | None:
    """`sum_i <t_i, c_i>`, whose gradient is what `t` passes back of `c`; None where no `t_i` depends on anything."""
    with torch.enable_grad():
        terms = [(t * c).sum() for t, c in zip(tensors, cotangents, strict=True) if t.requires_grad]
        return torch.stack(terms).sum() if terms else None


def traced(function: Callable[[Params], T], at: Params, rounding: float = 0.0) -> tuple[T, Callable[[Params], T]]:
    """The value of a function and its tangent map at a point, traced once and checked.

    Where a layer works in place (recurrent layers, attention) the tracer can silently record wrong views, or a buffer
    that the next call overwrites. Tracing the function without its in-place operations avoids that, but makes products
    slower by a quarter to a half, so it is done only where the plain trace is wrong.

    rounding: relative, of the coarsest products in it.

    Raises:
        RuntimeError: neither trace is the tangent map.
    """
    for candidate in (function, functionalize(function, remove="mutations")):
        with warnings.catch_warnings():  # the tracer warns of its own bookkeeping
            warnings.filterwarnings("ignore", message="Attempted to insert a get_attr Node", category=UserWarning)
            value, tangent = linearize(candidate, at)
        if _is_tangent_of(tangent, function, at, rounding):
            return value, tangent
    raise RuntimeError("the traced derivative is wrong, since an operation works in place")


def _is_tangent_of(
    tangent: Callable[[Params], Any], function: Callable[[Params], Any], at: Params, rounding: float
) -> bool:
    """Whether a traced tangent map agrees with forward mode; twice, since a wrong one may change with each call."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        along = {name: torch.randn(p.shape, generator=generator).to(p) for name, p in at.items()}
        pairs = zip(tree_leaves(jvp(function, (at,), (along,))[1]), tree_leaves(tangent(along)), strict=True)
        if any(_far_apart(expected, traced, rounding) for expected, traced in pairs):
            return False
    return True


def _far_apart(one: Tensor, other: Tensor, rounding: float) -> bool:
    if not one.numel():
        return False
    # a model may compute in single precision whatever its parameters are, and a wrong trace is wrong by far more
    coarsest = max(torch.finfo(one.dtype).eps, torch.finfo(torch.float32).eps, rounding)
    return bool((one - other).abs().max() > coarsest**0.5 * one.abs().max())


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


def _gradient(risk: Risk, batch: Batch) -> Linear:
    return grad(lambda trained: risk.losses(trained, risk.inherited_values, batch).sum())


def by_columns(risk: Risk, product: Linear, *, batched: bool = True) -> Product:
    """Lift a product of named tensors to columns of vectors.

    On an accelerator several columns go through one vectorised call. On the CPU the loop is faster: the passes are
    bound by arithmetic, and batching makes their tensors leave the cache (`benchmarks/products.py`: 32 ms against 19 ms
    a column, for 16 columns).
    """
    space = risk.trained

    def columns(vectors: Tensor) -> Tensor:
        if batched and vectors.is_cuda and vectors.shape[1] > 1:
            return space.flatten_columns(vmap(product)(space.unflatten_columns(vectors)))
        products = [space.flatten(product(space.unflatten(vector))).detach() for vector in vectors.unbind(dim=1)]
        # a vector can be as large as all else, and is not copied once more
        return products[0].unsqueeze(1) if len(products) == 1 else torch.stack(products, dim=1)

    return columns
