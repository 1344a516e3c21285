"""How to multiply: decided once per stage from a probe, by counted bytes and operations.

The probe multiplies one example twice. It tells whether second derivatives are there and symmetric, and how many bytes
an example's intermediates take; with the memory budget that decides between holding them and computing them anew.

Tracing the tangent map makes each product cheaper and costs as much as many products, whose number nobody knows
beforehand. So a stage begins with retained graphs, and is traced as soon as tracing would have paid (`traced_from`):
whatever the number turns out to be, that costs at most twice what knowing it would have. Counted bytes and operations
decide, not seconds: the same run always takes the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, final

from stagetrace.curvature.chunk import Product, hessian_linearised
from stagetrace.curvature.gauss_newton import gauss_newton_linearised
from stagetrace.curvature.probe import BY_REVERSE, RETAINED, Matrix, probed, recorded, with_rounding
from stagetrace.stages.data import Batch
from stagetrace.stages.recomputing import kept
from stagetrace.stages.risk import Risk

__all__ = ["COST", "Matrix", "Plan", "Way", "make_plan"]

Way = Literal["linearised", "retained graph", "retained reverse graph", "recomputed forward", "recomputed reverse"]

LINEARISED = {"Hessian": hessian_linearised, "GaussNewton": gauss_newton_linearised}

COST: dict[Matrix, dict[Way, float]] = {
    "Hessian": {
        "linearised": 1.7,
        "retained graph": 2.2,
        "retained reverse graph": 2.2,
        "recomputed forward": 3.3,
        "recomputed reverse": 3.3,
    },
    "GaussNewton": {
        "linearised": 1.1,
        "retained graph": 1.6,
        "retained reverse graph": 1.45,
        "recomputed forward": 2.2,
        "recomputed reverse": 3.3,
    },
}
"""Seconds of a product over seconds of a gradient, for one vector; `benchmarks/products.py` measures them."""

FORWARD = 1 / 3
"""A forward pass, in gradients."""

CHUNK_EXAMPLES = 1024
"""Most examples in a chunk: larger ones leave the caches and are slower per example."""

SMALL_CHUNK = 128
"""The same where examples differ in size: a chunk is padded to its longest."""

TRACED_BYTES: dict[Matrix, int] = {"Hessian": 4, "GaussNewton": 6}
"""What a traced tangent map holds over what the retained graph holds (`benchmarks/products.py`: 3.9 and 3.0, 5.5 and
3.6 on a small and a larger network)."""

TRACED_GRADIENTS = {"Hessian": 16, "GaussNewton": 7}
"""What tracing takes, in gradients of what is traced: it evaluates each operation some times over, and is checked."""

TRACED_OPERATIONS = {"Hessian": 2.8e8, "GaussNewton": 8e7}
"""The same for each call that a chunk's forward pass makes to PyTorch, in floating-point operations: the tracer's own
work, 14 and 4 ms where 2e10 operations take a second."""

COMPILER_OPERATIONS = 2.4e10
"""Importing the tracer, in the same unit."""


@final
@dataclass(frozen=True)
class Plan:
    """How a stage's curvature products are computed.

    way: what each chunk does; chunk_examples: examples per chunk; caches: whether chunks are held between products.
    bytes_per_example: measured intermediates; cached_bytes: what all chunks of this process hold together.
    missing: why there is no forward mode, in PyTorch's words; None where there is, and where none was asked for, as for
        a Hessian that is not traced.
    untraced: why the tangent map could not be traced; None where it could, or was not tried.
    rounding: relative, of the coarsest dtype that the model computes in.
    traced_from: the number of products with one vector at which tracing has paid; None where it never does.
    over_forward: bytes of the graphs that are kept, over those that a product with forward mode would keep.
    error: of products in a precision that was chosen: how far one was from that without, over its size.
    recomputes: whether the model drops activations (`stages/recomputing.py`) of Gauss-Newton's graph, which is then
        smaller, and its product a forward pass dearer; the Hessian's graph holds them.
    """

    matrix: Matrix
    way: Way
    chunk_examples: int
    bytes_per_example: int
    cached_bytes: int
    missing: str | None
    untraced: str | None = None
    rounding: float = 0.0
    traced_from: int | None = None
    over_forward: float = 1.0
    error: float | None = None
    recomputes: bool = False

    @property
    def caches(self) -> bool:
        return self.way in ("linearised", "retained graph", "retained reverse graph")

    def without_caching(self) -> "Plan":
        """The same without holding anything between products: for examples that are multiplied once."""
        way = _anew(self.matrix, self.missing)
        return replace(self, way=way, cached_bytes=0, traced_from=None, over_forward=1.0)

    def traced(self) -> "Plan":
        """The same by traced tangent maps, in place of retained graphs."""
        held = round(self.cached_bytes / self.over_forward) * TRACED_BYTES[self.matrix]
        return replace(self, way="linearised", cached_bytes=held, traced_from=None, over_forward=1.0)

    def in_reverse(self, over_forward: float) -> "Plan":
        """The same with Gauss-Newton's graphs of reverse mode twice, which are larger and take fewer operations."""
        held = round(self.cached_bytes * over_forward)
        return replace(self, way="retained reverse graph", cached_bytes=held, over_forward=over_forward)

    def without_recomputing(self) -> "Plan":
        """The same of a model that holds its activations."""
        return replace(self, recomputes=False)

    def untraceable(self, why: str) -> "Plan":
        """The same with retained graphs for good, since tracing failed."""
        return replace(self, untraced=why, traced_from=None)

    @property
    def gradients_per_product(self) -> float:
        """Expected cost of one product in gradients over the same examples."""
        if self.missing is not None:  # Gauss-Newton is multiplied as the Hessian is
            return COST["Hessian"][self.way]
        return COST[self.matrix][self.way] + (FORWARD if self.recomputes else 0.0)

    def chunk(self, risk: Risk, batch: Batch) -> Product:
        """The product of one chunk."""
        if self.way == "linearised":
            return LINEARISED[self.matrix](risk, batch)
        reverse = self.missing is not None or self.way in ("recomputed reverse", "retained reverse graph")
        return (BY_REVERSE if reverse else RETAINED)[self.matrix](risk, batch)


def _anew(matrix: Matrix, missing: str | None) -> Way:
    return "recomputed forward" if matrix == "GaussNewton" and missing is None else "recomputed reverse"


def make_plan(
    risk: Risk, matrix: Matrix, indices: Sequence[int], share: int, memory: int, *, differ: bool = False
) -> Plan:
    """Decide how `share` of the examples are multiplied within `memory` bytes, from a probe of one of them.

    differ: the examples differ in size and are in its order; chunks are small then. A short one is multiplied (a sixth
        are shorter: the shortest of texts may be a word, of which nothing is predicted and every matrix is zero), which
        takes the operations that a long one takes; of a middle and of a long one the graph is measured, too.

    Raises:
        DifferentiationError: the model has no second derivatives (names what PyTorch says), or wrong ones.
    """
    places = [(len(indices) - 1) * sixth // 6 for sixth in (1, 3, 5)] if differ else [0]
    probe, *others = risk.read([[indices[place]] for place in places])
    risk = risk.unweighted  # of an example of weight 0 every product would be right
    found, error = probed(risk.exact, matrix, probe), None
    rounding = found.rounding
    if risk.exact is not risk:
        found, error = with_rounding(risk, matrix, found, probe)
        rounding = max(rounding, risk.rounding, error)
    sizes = [found.size, *(recorded(risk, found.way, other)[1] for other in others)]
    per_example, largest, per_chunk = max(1, sum(sizes) // len(sizes)), max(1, *sizes), 0
    if (
        share * largest > memory >= 2 * found.size and len(indices) > 1
    ):  # part of it may be the chunk's, whatever its size
        pair = next(iter(risk.read([[indices[places[0]], indices[min(places[0] + 1, len(indices) - 1)]]])))
        per_chunk = max(0, min(2 * found.size - recorded(risk, found.way, pair)[1], min(sizes) - 1))
        per_example, largest = per_example - per_chunk, largest - per_chunk
    most = SMALL_CHUNK if differ else CHUNK_EXAMPLES
    recomputes = matrix == "GaussNewton" and risk.evaluation.recomputes
    if recomputes:  # of a chunk all activations may be there while a product is made, block by block or at once
        with kept():
            most = max(1, min(most, memory // max(1, recorded(risk, found.way, probe)[1])))
    chunk_examples = max(1, min(most, share, (memory - per_chunk) // largest))
    chunks = -(-share // chunk_examples)
    plan = Plan(
        matrix,
        "retained graph",
        chunk_examples,
        per_example,
        per_example * share + per_chunk * chunks,
        found.missing,
        rounding=rounding,
        error=error,
        recomputes=recomputes,
    )
    if plan.cached_bytes > memory:
        return plan.without_caching()
    traceable = found.missing is None and plan.cached_bytes * TRACED_BYTES[matrix] <= memory
    if recomputes:  # a trace holds what the graph was to drop
        traceable = False
    if found.reverse is not None and plan.cached_bytes * found.reverse / max(1, found.size) <= memory:
        plan = plan.in_reverse(found.reverse / max(1, found.size))
    if not traceable:
        return plan
    gradient, calls = found.gradient * share, found.calls * chunks
    return replace(plan, traced_from=_traced_from(matrix, gradient, calls, plan.way))


def _traced_from(matrix: Matrix, gradient: int, calls: int, way: Way = "retained graph") -> int:
    """From how many products on tracing has paid: what it takes, over what it saves in each, compared with a way.

    gradient: floating-point operations of a gradient of all examples. calls: of all chunks' forward passes.
    """
    set_up = COMPILER_OPERATIONS + TRACED_OPERATIONS[matrix] * calls + TRACED_GRADIENTS[matrix] * gradient
    saved = COST[matrix][way] - COST[matrix]["linearised"]
    return ceil(set_up / (saved * max(1, gradient)))
