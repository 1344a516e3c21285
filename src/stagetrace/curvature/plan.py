"""Which way to multiply: decided once per stage from a probe, by counted bytes.

The probe differentiates a few examples twice. It tells whether the model has forward-mode derivatives, and how many
bytes an example's intermediates take; with the memory budget that decides between keeping them (a product then costs
1.7 to 2.3 gradients) and computing them anew (3.5). Tracing the tangent map costs the better part of a second
whatever the size, so small problems keep the graph instead. Counted bytes and operations decide, not seconds: the same
run always goes the same way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from stagetrace.curvature.chunk import (
    Product,
    gauss_newton_anew,
    gauss_newton_graph,
    gauss_newton_linearised,
    hessian_anew,
    hessian_graph,
    hessian_linearised,
)
from stagetrace.errors import DifferentiationError, StagetraceError
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk

Matrix = Literal["Hessian", "GaussNewton"]
Way = Literal["linearised", "graph kept", "forward anew", "reverse anew"]

LINEARISED = {"Hessian": hessian_linearised, "GaussNewton": gauss_newton_linearised}
ANEW = {"Hessian": hessian_anew, "GaussNewton": gauss_newton_anew}
GRAPH = {"Hessian": hessian_graph, "GaussNewton": gauss_newton_graph}

COST = {"linearised": 1.7, "graph kept": 2.3, "forward anew": 3.5, "reverse anew": 3.5}
"""Seconds of a product over seconds of a gradient, for one vector; `benchmarks/products.py` measures them."""

CHUNK_EXAMPLES = 1024
"""Most examples in a chunk: larger ones leave the caches and are slower per example."""

PROBE_EXAMPLES = 8

TRACED_OPERATIONS = 2.5e8
"""Floating-point operations of a gradient (counted in matrix products and convolutions) from which tracing pays: it
costs 0.3 to 1.3 s and saves about one gradient a product, so a gradient of 10 ms earns it back in some tens of them."""

TRACED_BYTES = 3
"""What a traced tangent map keeps, at most, over what the graph of the same gradient keeps."""


@final
@dataclass(frozen=True)
class Plan:
    """How a stage's curvature products are computed.

    way: what each chunk does; chunk_examples: examples per chunk; keeps: whether chunks are kept between products.
    bytes_per_example: measured intermediates; kept_bytes: what all chunks of this process hold together.
    missing: why there is no forward mode, in PyTorch's words; None where there is.
    untraced: why the tangent map could not be traced although there is forward mode; None where it could, or need not.
    """

    matrix: Matrix
    way: Way
    chunk_examples: int
    bytes_per_example: int
    kept_bytes: int
    missing: str | None
    untraced: str | None = None

    @property
    def keeps(self) -> bool:
        return self.way in ("linearised", "graph kept")

    def anew(self) -> "Plan":
        """The same without keeping anything: for examples that are multiplied once."""
        return replace(self, way="forward anew" if self.missing is None else "reverse anew", kept_bytes=0)

    def by_graphs(self, why: str) -> "Plan":
        """The same by kept graphs, where tracing failed."""
        return replace(self, way="graph kept", kept_bytes=self.kept_bytes // TRACED_BYTES, untraced=why)

    @property
    def gradients_per_product(self) -> float:
        """Expected cost of one product in gradients over the same examples."""
        return COST[self.way]

    def chunk(self, risk: Risk, batch: Batch) -> Product:
        """The product of one chunk."""
        if self.way == "linearised":
            return LINEARISED[self.matrix](risk, batch)
        if self.way == "forward anew":
            return ANEW[self.matrix](risk, batch)
        return GRAPH[self.matrix](risk, batch)


def make_plan(risk: Risk, matrix: Matrix, indices: Sequence[int], share: int, memory: int) -> Plan:
    """Decide how `share` of the examples are multiplied within `memory` bytes, from a probe of a few of them.

    Raises:
        DifferentiationError: the model has no second derivatives in either mode; names what PyTorch says.
    """
    one, few = risk.read([indices[:1], indices[:PROBE_EXAMPLES]])
    per_example, per_chunk = _bytes_saved(risk, matrix, one, few)
    missing = _failure(ANEW[matrix], risk, one)
    chunk_examples = max(1, min(CHUNK_EXAMPLES, share, (memory - per_chunk) // per_example))
    kept_bytes = per_example * share + per_chunk * -(-share // chunk_examples)
    if kept_bytes > memory:
        return Plan(matrix, "reverse anew" if missing else "forward anew", chunk_examples, per_example, 0, missing)
    traced = not missing and kept_bytes * TRACED_BYTES <= memory
    if traced and _gradient_operations(risk, few) * share >= TRACED_OPERATIONS:
        untraced = _failure(LINEARISED[matrix], risk, one)
        if untraced:
            return Plan(matrix, "graph kept", chunk_examples, per_example, kept_bytes, None, untraced)
        return Plan(matrix, "linearised", chunk_examples, per_example, kept_bytes * TRACED_BYTES, None)
    return Plan(matrix, "graph kept", chunk_examples, per_example, kept_bytes, missing)


def _gradient_operations(risk: Risk, batch: Batch) -> float:
    """Floating-point operations of one example's gradient: three times those of its forward pass."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        risk.losses(risk.own_values, risk.inherited_values, batch)
    return 3 * counter.get_total_flops() / len(batch)


def _bytes_saved(risk: Risk, matrix: Matrix, one: Batch, few: Batch) -> tuple[int, int]:
    """What autograd saves for a second derivative: bytes per example, and bytes per chunk whatever its size."""
    small, large = _bytes_of(risk, matrix, one), _bytes_of(risk, matrix, few)
    per_example = max(1, (large - small) // (len(few) - 1) if len(few) > 1 else small)
    return per_example, max(0, small - per_example)


def _bytes_of(risk: Risk, matrix: Matrix, batch: Batch) -> int:
    data = [leaf for leaf in tree_leaves(batch.content) if isinstance(leaf, Tensor)]
    known = (*risk.own_values.values(), *risk.inherited_values.values(), *data)
    there_anyway = {tensor.untyped_storage().data_ptr() for tensor in known}
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there_anyway:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            product = GRAPH[matrix](risk, batch)
        product(risk.own.zeros(1))
    except StagetraceError:
        raise
    except (RuntimeError, NotImplementedError) as cause:
        raise DifferentiationError(
            f"{risk.where}: the {matrix} needs second derivatives, which an operation of the model or loss lacks "
            f"({first_line(cause)}); replace that operation, or use curvature=Identity() for this stage"
        ) from cause
    return sum(saved.values())


def _failure(way: Callable[[Risk, Batch], Product], risk: Risk, probe: Batch) -> str | None:
    """None if this way of multiplying works on the probe, otherwise what PyTorch says is missing."""
    try:
        way(risk, probe)(risk.own.zeros(1))
    except StagetraceError:
        raise
    except (RuntimeError, NotImplementedError) as cause:
        return first_line(cause)
    return None


def first_line(error: BaseException) -> str:
    """The first sentence of an error's message, without PyTorch's advice after it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:197] + "..."
