"""How to multiply: decided once per stage from a probe, by counted bytes.

The probe differentiates a few examples twice. It tells whether the model has forward-mode derivatives, and how many
bytes an example's intermediates take; with the memory budget that decides between holding them (a product then costs
1.7 to 2.3 gradients) and recomputing them (3.5). Tracing the tangent map costs up to some seconds whatever the size,
so small problems retain the graph instead. Counted bytes and operations decide, not seconds: the same run always takes
the same way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from stagetrace.curvature.chunk import (
    Product,
    gauss_newton_linearised,
    gauss_newton_recomputed,
    gauss_newton_retained_graph,
    hessian_linearised,
    hessian_recomputed,
    hessian_retained_graph,
)
from stagetrace.curvature.memory import graph_bytes
from stagetrace.curvature.rounding import coarsest
from stagetrace.errors import DifferentiationError, StagetraceError, first_line
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk

Matrix = Literal["Hessian", "GaussNewton"]
Way = Literal["linearised", "retained graph", "recomputed forward", "recomputed reverse"]

LINEARISED = {"Hessian": hessian_linearised, "GaussNewton": gauss_newton_linearised}
RECOMPUTED = {"Hessian": hessian_recomputed, "GaussNewton": gauss_newton_recomputed}
RETAINED = {"Hessian": hessian_retained_graph, "GaussNewton": gauss_newton_retained_graph}

COST = {"linearised": 1.7, "retained graph": 2.3, "recomputed forward": 3.5, "recomputed reverse": 3.5}
"""Seconds of a product over seconds of a gradient, for one vector; `benchmarks/products.py` measures them."""

CHUNK_EXAMPLES = 1024
"""Most examples in a chunk: larger ones leave the caches and are slower per example."""

SMALL_CHUNK = 128
"""The same where examples differ in size: a chunk is padded to its longest."""

PROBE_EXAMPLES = 8

TRACED_OPERATIONS = 1e6
"""From how many floating-point operations in a chunk's gradient (matrix products and convolutions) tracing pays, over
the squared number of calls that the forward pass makes to PyTorch. Tracing a chunk costs 0.3 s for a small network of
convolutions (15 calls) and 4 s for BERT with two layers (184), and saves a quarter to one gradient a product: at 2e8
operations and at 4e10 it earns that back in some tens of products."""

ASYMMETRY = 0.02
"""How far `u' H v` and `v' H u` may be apart, over the size of `H v`, for standard normal u and v: above rounding in
half precision, below what a wrong derivative does."""

TRACED_BYTES = 3
"""What a traced tangent map holds, at most, over what the graph of the same gradient holds."""


@final
@dataclass(frozen=True)
class Plan:
    """How a stage's curvature products are computed.

    way: what each chunk does; chunk_examples: examples per chunk; caches: whether chunks are held between products.
    bytes_per_example: measured intermediates; cached_bytes: what all chunks of this process hold together.
    missing: why there is no forward mode, in PyTorch's words; None where there is.
    untraced: why the tangent map could not be traced although there is forward mode; None where it could, or need not.
    rounding: relative, of the coarsest dtype that the model computes in.
    """

    matrix: Matrix
    way: Way
    chunk_examples: int
    bytes_per_example: int
    cached_bytes: int
    missing: str | None
    untraced: str | None = None
    rounding: float = 0.0

    @property
    def caches(self) -> bool:
        return self.way in ("linearised", "retained graph")

    def without_caching(self) -> "Plan":
        """The same without holding anything between products: for examples that are multiplied once."""
        return replace(self, way="recomputed forward" if self.missing is None else "recomputed reverse", cached_bytes=0)

    def with_retained_graphs(self, why: str) -> "Plan":
        """The same with retained graphs, where tracing failed."""
        return replace(self, way="retained graph", cached_bytes=self.cached_bytes // TRACED_BYTES, untraced=why)

    @property
    def gradients_per_product(self) -> float:
        """Expected cost of one product in gradients over the same examples."""
        return COST[self.way]

    def chunk(self, risk: Risk, batch: Batch) -> Product:
        """The product of one chunk."""
        if self.way == "linearised":
            return LINEARISED[self.matrix](risk, batch)
        if self.way == "recomputed forward":
            return RECOMPUTED[self.matrix](risk, batch)
        return RETAINED[self.matrix](risk, batch)


def make_plan(
    risk: Risk, matrix: Matrix, indices: Sequence[int], share: int, memory: int, *, differ: bool = False
) -> Plan:
    """Decide how `share` of the examples are multiplied within `memory` bytes, from a probe of a few of them.

    differ: the examples differ in size and are in its order; few of each size are looked at, and chunks are small.

    Raises:
        DifferentiationError: the model has no second derivatives in either mode (names what PyTorch says), or wrong
            ones.
    """
    groups = [indices[start : start + PROBE_EXAMPLES] for start in _starts(len(indices), differ=differ)]
    probes = [tuple(risk.read([group[:1], group])) for group in groups]
    few = probes[0][1]
    plan = _planned(risk, matrix, probes, share, memory, SMALL_CHUNK if differ else CHUNK_EXAMPLES)
    plan = replace(plan, rounding=torch.finfo(coarsest(risk, few)).eps)
    _check_symmetric(risk, plan, few)
    return plan


def _starts(total: int, *, differ: bool) -> list[int]:
    """Where the examples that are looked at begin: in the middle of the shortest, middle and longest third."""
    last = max(0, total - PROBE_EXAMPLES)
    return [last * sixth // 6 for sixth in (3, 1, 5)] if differ else [0]


def _planned(
    risk: Risk, matrix: Matrix, probes: Sequence[tuple[Batch, ...]], share: int, memory: int, most: int
) -> Plan:
    saved = [_bytes_saved(risk, matrix, one, few) for one, few in probes]
    per_example, per_chunk = sum(each for each, _ in saved) // len(saved), max(rest for _, rest in saved)
    one, few = probes[0]
    missing = _failure(RECOMPUTED[matrix], risk, one)
    chunk_examples = max(1, min(most, share, (memory - per_chunk) // max(each for each, _ in saved)))
    cached_bytes = per_example * share + per_chunk * -(-share // chunk_examples)
    if cached_bytes > memory:
        return Plan(
            matrix, "recomputed reverse" if missing else "recomputed forward", chunk_examples, per_example, 0, missing
        )
    traced = not missing and cached_bytes * TRACED_BYTES <= memory
    if traced and _tracing_pays(risk, few, chunk_examples):
        untraced = _failure(LINEARISED[matrix], risk, one)
        if untraced:
            return Plan(matrix, "retained graph", chunk_examples, per_example, cached_bytes, None, untraced)
        return Plan(matrix, "linearised", chunk_examples, per_example, cached_bytes * TRACED_BYTES, None)
    return Plan(matrix, "retained graph", chunk_examples, per_example, cached_bytes, missing)


def _check_symmetric(risk: Risk, plan: Plan, few: Batch) -> None:
    """Refuse second derivatives that are wrong: right ones satisfy `u' H v = v' H u`.

    A fused operation can have a first derivative that is right and, silently, a second one that is not.
    """
    product = (RETAINED if plan.way in ("retained graph", "recomputed reverse") else RECOMPUTED)[plan.matrix](risk, few)
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(risk.trained.size, 2, generator=generator).to(risk.trained.device, risk.trained.dtype)
    products = product(pair)
    between = pair.mT @ products
    size = torch.linalg.vector_norm(products, dim=0).max()
    rounding = plan.rounding**0.5 * len(few)  # of losses of about one: all there is where H is zero
    if bool((between[0, 1] - between[1, 0]).abs() > ASYMMETRY * size + rounding):
        raise DifferentiationError(
            f"{risk.where}: the {plan.matrix} of a few examples is not symmetric (u'Hv = {float(between[0, 1]):.3g}, "
            f"v'Hu = {float(between[1, 0]):.3g}): the second derivative of an operation is wrong, as that of the fused "
            "weight norm is; write the operation out in plain PyTorch (torch.nn.utils.parametrizations.weight_norm for "
            "torch.nn.utils.weight_norm), or use curvature=Identity() for this stage"
        )


def _tracing_pays(risk: Risk, batch: Batch, chunk_examples: int) -> bool:
    """Whether a chunk's gradient, three forward passes, is enough work to pay for tracing it."""
    operations, calls = _counted(risk, batch)
    return 3 * operations * chunk_examples / len(batch) >= TRACED_OPERATIONS * calls**2


def counted_operations(risk: Risk, batch: Batch) -> int:
    """Floating-point operations of a batch's forward pass, in matrix products and convolutions."""
    return _counted(risk, batch)[0]


def _counted(risk: Risk, batch: Batch) -> tuple[int, int]:
    """Those operations, and the calls to PyTorch."""
    operations, calls = FlopCounterMode(display=False), _Calls()
    with torch.no_grad(), operations, calls:
        risk.losses(risk.trained_values, risk.inherited_values, batch)
    return operations.get_total_flops(), calls.number


@final
class _Calls(TorchDispatchMode):
    """Counts the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def _bytes_saved(risk: Risk, matrix: Matrix, one: Batch, few: Batch) -> tuple[int, int]:
    """What autograd saves for a second derivative: bytes per example, and bytes per chunk whatever its size."""
    small, large = _bytes_of(risk, matrix, one), _bytes_of(risk, matrix, few)
    per_example = max(1, (large - small) // (len(few) - 1) if len(few) > 1 else small)
    return per_example, max(0, small - per_example)


def _bytes_of(risk: Risk, matrix: Matrix, batch: Batch) -> int:
    try:
        product, size = graph_bytes(risk, batch, partial(RETAINED[matrix], risk, batch))
        product(risk.trained.zeros(1))
    except StagetraceError:
        raise
    except (RuntimeError, NotImplementedError) as cause:
        raise DifferentiationError(
            f"{risk.where}: the {matrix} needs second derivatives, which an operation of the model or loss lacks "
            f"({first_line(cause)}); replace that operation, or use curvature=Identity() for this stage"
            f"{_instead(cause)}"
        ) from cause
    return size


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


def _failure(way: Callable[[Risk, Batch], Product], risk: Risk, probe: Batch) -> str | None:
    """None if this way of multiplying works on the probe, otherwise what PyTorch says is missing."""
    try:
        way(risk, probe)(risk.trained.zeros(1))
    except StagetraceError:
        raise
    except (RuntimeError, NotImplementedError) as cause:
        return first_line(cause)
    return None
