"""An example multiplied before anything is spent: which ways there are, whether they are right, and what they hold.

Gauss-Newton has two: `J v` by forward mode, which computes the outputs beside it, and `J v` as the backward pass of a
backward pass, which does not. Of layers that are matrix products a product takes 5 multiply-adds for each of a forward
pass in the one way and 4 in the other, of convolutions 5 and up to 6; the graph of the second is larger. So a vector is
multiplied in both, and the operations are counted; that both give one tangent says that the derivatives are right.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor

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
from stagetrace.curvature.rounding import RoundedTo
from stagetrace.curvature.symmetry import asymmetry, asymmetry_beside, drawn, not_symmetric
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
    gradient, calls: operations of a gradient, and calls that a forward pass makes to PyTorch.
    coarsest: the dtype of the coarsest arithmetic in it.
    """

    way: Callable[[Risk, Batch], Product]
    size: int
    missing: str | None
    gradient: int
    calls: int
    coarsest: torch.dtype
    reverse: int | None = None

    @property
    def rounding(self) -> float:
        """Relative, of the coarsest arithmetic."""
        return torch.finfo(self.coarsest).eps


def probed(risk: Risk, matrix: Matrix, probe: Batch) -> Probed:
    """Multiply the probe by a vector or two: in forward mode where that is of use, and without it otherwise.

    Passes, in gradients of the probe:

        Hessian         the gradient's graph 1, two products on it 4: `u' H v = v' H u` needs both
        Gauss-Newton    J v by forward mode 1; the outputs' graph 1/3; on it that of J v 2/3, J v 2/3, and J' c 2/3

    Operations are counted and dtypes seen while the graph is recorded, not in a pass of their own. No more is held than
    for a product: a vector, the graph, and the product.
    """
    both = _both_modes(risk, probe) if matrix == "GaussNewton" else None
    if both is not None:
        return both
    like = _like(risk)
    missing: str | None = None
    for way in dict.fromkeys((RETAINED[matrix], BY_REVERSE[matrix])):
        try:
            seen = _Seen(risk)
            with seen:
                product, size = recorded(risk, way, probe)
            apart = asymmetry(product, like, seen.rounding)
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
            forwards = 1 if way is gauss_newton_retained_graph else 3
            return Probed(way, size, missing, *seen.counted(forwards))
        if way is BY_REVERSE[matrix]:
            raise not_symmetric(risk.where, matrix, "of an example", *apart)
        missing = "forward mode gives another derivative than reverse mode"
    raise AssertionError("one way multiplies or raises")


def _like(risk: Risk) -> Tensor:
    """Of the vectors' length, dtype and device, without their memory."""
    return torch.zeros((), dtype=risk.trained.dtype, device=risk.trained.device).expand(risk.trained.size)


@final
class _Seen:
    """What is seen while a graph is recorded: its operations, and its coarsest arithmetic."""

    def __init__(self, risk: Risk) -> None:
        self._operations, self._dtypes = Operations(), RoundedTo(risk.trained.dtype)

    def __enter__(self) -> None:
        self._operations.__enter__()
        self._dtypes.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self._dtypes.__exit__(*raised)
        self._operations.__exit__(*raised)

    @property
    def rounding(self) -> float:
        return torch.finfo(self._dtypes.coarsest).eps

    def counted(self, forwards: int) -> tuple[int, int, torch.dtype]:
        """A gradient's operations, a forward pass's calls, and the dtype.

        forwards: passes that were recorded, counted in forward passes; a backward pass is two.
        """
        return 3 * self._operations.total // forwards, self._operations.calls // forwards, self._dtypes.coarsest


def _both_modes(risk: Risk, probe: Batch) -> Probed | None:
    """Gauss-Newton with `J v` in both modes: equal, J' its transpose and H_out symmetric; None where it is not so.

    One vector is enough: `J' H_out J` is then symmetric by itself.
    """
    vector = risk.trained.unflatten(drawn(_like(risk), 0))
    ahead, back, rest, seen = Operations(), Operations(), Operations(), _Seen(risk)
    try:
        with ahead:  # before there is a graph beside it
            forward = forward_tangent(risk, probe, vector)
        with seen:
            graph, held = graph_storages(risk, probe, partial(OutputGraph, risk, probe))
        tangent, beside = graph_storages(risk, probe, partial(TangentGraph, graph))
        with back:
            reverse = tangent(vector)
        with rest:
            curved = graph.curved(reverse)
            pulled = graph.pulled(curved)
        check_adjoint(forward, curved, vector, pulled)
    except (RuntimeError, NotImplementedError):
        return None
    del tangent, pulled, vector  # let go of at once: each is as large as the parameters, or as the outputs
    size = float(torch.linalg.vector_norm(forward, dtype=torch.float64))
    apart = float(torch.linalg.vector_norm(forward.sub_(reverse), dtype=torch.float64))
    if apart > (MODES_APART + seen.rounding**0.5) * size:
        return None
    del forward

    def curved_as_column(cotangent: Tensor) -> Tensor:
        return graph.curved(cotangent.view_as(reverse)).reshape(-1, 1)

    if asymmetry_beside(reverse.flatten(), curved.flatten(), curved_as_column, seen.rounding) is not None:
        return None
    fewer = back.total + rest.total <= FEWER * (ahead.total + rest.total)
    larger = sum((held | beside).values()) if fewer else None
    return Probed(gauss_newton_retained_graph, sum(held.values()), None, *seen.counted(1), larger)


def recorded(risk: Risk, way: Callable[[Risk, Batch], Product], batch: Batch) -> tuple[Product, int]:
    """A batch's product on retained graphs, and the bytes that these hold."""
    return graph_bytes(risk, batch, partial(way, risk, batch))


def with_rounding(risk: Risk, matrix: Matrix, found: Probed, probe: Batch) -> tuple[Probed, float]:
    """The same with products in the precision that was chosen, and how far one is from that without, over its size.

    found: of `risk.exact`, whose derivatives are right and whose matrix is symmetric: so is the rounded one to so much.

    Raises:
        DifferentiationError: rounding leaves little of a product.
    """
    vector = drawn(_like(risk), 0).unsqueeze(1)
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
