"""An example multiplied before anything is spent: which ways there are, whether they are right, and what they hold.

Gauss-Newton has two: `J v` by forward mode, which computes the outputs beside it, and `J v` as the backward pass of a
backward pass, which does not. Of layers that are matrix products a product takes 5 multiply-adds for each of a forward
pass in the one way and 4 in the other, of convolutions 5 and up to 6; the graph of the second is larger. So a vector is
multiplied in both, and the operations are counted; that both give one tangent says that the derivatives are right.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, final

import torch

from stagetrace.curvature.chunk import Product, hessian_retained_graph
from stagetrace.curvature.gauss_newton import (
    MODES_APART,
    OutputGraph,
    TangentGraph,
    check_adjoint,
    forward_tangent,
    gauss_newton_by_reverse,
    gauss_newton_retained_graph,
)
from stagetrace.curvature.memory import graph_bytes, graph_storages
from stagetrace.curvature.operations import Operations
from stagetrace.curvature.symmetry import asymmetry, drawn, not_symmetric
from stagetrace.errors import DifferentiationError, StagetraceError, first_line
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk

__all__ = ["BY_REVERSE", "RETAINED", "Matrix", "Probed", "probed", "recorded", "with_rounding"]

Matrix = Literal["Hessian", "GaussNewton"]

RETAINED = {"Hessian": hessian_retained_graph, "GaussNewton": gauss_newton_retained_graph}
BY_REVERSE = {"Hessian": hessian_retained_graph, "GaussNewton": gauss_newton_by_reverse}

MOST_ROUNDED = 0.25
"""The relative error of a product in a chosen precision above which nothing is solved with it."""

FEWER = 0.9
"""Operations of a Gauss-Newton product in reverse mode, over those with forward mode, up to which its graph is kept."""


@final
@dataclass(frozen=True)
class Probed:
    """The way that the probe was multiplied in, what its graph holds, and why there is no forward mode, if so.

    reverse: bytes of the graph of reverse mode, where that takes fewer operations than the way with forward mode.
    """

    way: Callable[[Risk, Batch], Product]
    size: int
    missing: str | None
    reverse: int | None = None


def probed(risk: Risk, matrix: Matrix, probe: Batch, rounding: float) -> Probed:
    """Multiply the probe by a vector or two: in forward mode where that is of use, and without it otherwise."""
    both = _both_modes(risk, probe, rounding) if matrix == "GaussNewton" else None
    if both is not None:
        return both
    like = risk.trained.zeros(1)[:, 0]
    missing: str | None = None
    for way in dict.fromkeys((RETAINED[matrix], BY_REVERSE[matrix])):
        try:
            product, size = recorded(risk, way, probe)
            apart = asymmetry(product, like, rounding)
        except StagetraceError:
            raise
        except (RuntimeError, NotImplementedError) as cause:
            if way is not BY_REVERSE[matrix]:
                missing = first_line(cause)
                continue
            raise DifferentiationError(
                f"{risk.where}: the {matrix} needs second derivatives, which an operation of the model or loss lacks "
                f"({first_line(cause)}); replace that operation, or use curvature=Identity() for this stage"
                f"{_instead(cause)}"
            ) from cause
        if apart is None:
            return Probed(way, size, missing)
        if way is BY_REVERSE[matrix]:
            raise not_symmetric(risk.where, matrix, "of an example", *apart)
        missing = "forward mode gives another derivative than reverse mode"
    raise AssertionError("one way multiplies or raises")


def _both_modes(risk: Risk, probe: Batch, rounding: float) -> Probed | None:
    """Gauss-Newton with `J v` in both modes: equal, J' its transpose and H_out symmetric; None where it is not so.

    One vector is enough: `J' H_out J` is then symmetric by itself.
    """
    vector = risk.trained.unflatten(drawn(risk.trained.zeros(1)[:, 0], 0))
    ahead, back, rest = Operations(), Operations(), Operations()
    try:
        graph, held = graph_storages(risk, probe, partial(OutputGraph, risk, probe))
        tangent, beside = graph_storages(risk, probe, partial(TangentGraph, graph))
        with back:
            reverse = tangent(vector)
        with ahead:
            forward = forward_tangent(risk, probe, vector)
        with rest:
            curved = graph.curved(reverse)
            pulled = graph.pulled(curved)
        check_adjoint(forward, curved, vector, pulled)
    except (RuntimeError, NotImplementedError):
        return None
    apart = float(torch.linalg.vector_norm((forward - reverse).double()))
    if apart > (MODES_APART + rounding**0.5) * float(torch.linalg.vector_norm(forward.double())):
        return None
    outputs = graph.outputs.detach()
    if asymmetry(lambda c: graph.curved(c.view_as(outputs)).reshape(-1, 1), outputs.flatten(), rounding) is not None:
        return None
    fewer = back.total + rest.total <= FEWER * (ahead.total + rest.total)
    return Probed(
        gauss_newton_retained_graph, sum(held.values()), None, sum((held | beside).values()) if fewer else None
    )


def recorded(risk: Risk, way: Callable[[Risk, Batch], Product], batch: Batch) -> tuple[Product, int]:
    """A batch's product on retained graphs, and the bytes that these hold."""
    return graph_bytes(risk, batch, partial(way, risk, batch))


def with_rounding(risk: Risk, matrix: Matrix, found: Probed, probe: Batch) -> tuple[Probed, float]:
    """The same with products in the precision that was chosen, and how far one is from that without, over its size.

    found: of `risk.exact`, whose derivatives are right and whose matrix is symmetric: so is the rounded one to so much.

    Raises:
        DifferentiationError: rounding leaves little of a product.
    """
    vector = drawn(risk.trained.zeros(1)[:, 0], 0).unsqueeze(1)
    right = found.way(risk.exact, probe)(vector)
    product, size = recorded(risk, found.way, probe)
    norm = float(torch.linalg.vector_norm(right))
    error = float(torch.linalg.vector_norm(product(vector) - right)) / norm if norm else 0.0
    if not error <= MOST_ROUNDED:
        raise DifferentiationError(
            f"{risk.where}: with precision={risk.evaluation.precision!r} a product of the {matrix} with a random "
            f"vector is off by {error:.0%} on example {probe.indices[0]}; leave precision= out"
        )
    reverse = None if found.reverse is None else recorded(risk, gauss_newton_by_reverse, probe)[1]
    return replace(found, size=size, reverse=reverse), error


INSTEAD = {
    "SparseBs": "give the matrix as matrix.to_sparse_csr()",
    "embedding_bag": "use nn.EmbeddingBag instead of the function",
    "flash_attention": "use F.scaled_dot_product_attention, or set_attn_implementation('eager')",
    "saved tensor hooks": "use the model without torch.utils.checkpoint",
    "once_differentiable": "use a function whose backward is made of differentiable operations",
}


def _instead(cause: BaseException) -> str:
    """What to use instead of the operation that an error names, as the end of a message; empty where unknown."""
    return next((f": {advice}" for word, advice in INSTEAD.items() if word in str(cause)), "")
