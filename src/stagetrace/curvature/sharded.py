"""The mean of second derivatives over examples where parameters, and so all vectors, lie in shards on the processes.

Products go through the graph of the gradient, or of the outputs, in reverse mode alone. What such a graph keeps of a
weight is this process's piece (`stages/shards`); it is kept between products while all graphs fit into memory, and made
anew for each product otherwise, in all processes or in none.
"""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.chunk import Product, hessian_retained_graph
from stagetrace.curvature.cost import Cost
from stagetrace.curvature.gauss_newton import gauss_newton_by_reverse
from stagetrace.curvature.operator import Factor, LinearOperator
from stagetrace.curvature.plan import COST, Matrix
from stagetrace.curvature.processes import sharing
from stagetrace.curvature.shares import Shares
from stagetrace.curvature.symmetry import FirstProducts
from stagetrace.errors import DifferentiationError, SolveError, StagetraceError, first_line
from stagetrace.parallel import world
from stagetrace.progress import part_done
from stagetrace.stages.data import Batch
from stagetrace.stages.in_step import batches_of, in_step
from stagetrace.stages.risk import Risk
from stagetrace.stages.shards import differentiating
from stagetrace.stages.sparse import storages_of

__all__ = ["ShardedCurvature"]

PRODUCTS: dict[Matrix, Callable[[Risk, Batch], Product]] = {
    "Hessian": hessian_retained_graph,
    "GaussNewton": gauss_newton_by_reverse,
}

REVERSE = "the parameters lie in shards"
"""Why there is no forward mode."""


@final
class ShardedCurvature(LinearOperator):
    """`(1/n) sum_i d2 loss_i` (or its Gauss-Newton part) over some examples; vectors `[dim, k]` are pieces.

    memory: bytes of graphs per process that are kept between products.
    """

    def __init__(self, risk: Risk, matrix: Matrix, indices: Sequence[int], memory: int) -> None:
        self.size, self.dtype, self.device = risk.trained.size, risk.trained.dtype, risk.trained.device
        self.risk, self.indices, self.memory = risk, indices, memory
        self.matrix: Matrix = matrix
        self._shares = sharing(risk)
        self._first = FirstProducts(risk.where, matrix, self.rounding, self._shares)
        self._kept: list[Product] | None = None
        self._bytes, self._seen = 0, set[int]()

    @property
    def shares(self) -> Shares:
        return self._shares

    def apply(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        with world().together(f"a product with the curvature of {self.risk.where}"), differentiating(self._count):
            if self._kept is None:
                self._go_through(vectors, total)
            else:
                for done, product in enumerate(self._kept, start=1):
                    total += product(vectors)
                    part_done(done / len(self._kept))
        total /= len(self.indices)
        self._check_finite(total)
        self._first.see(vectors, total)
        return total

    def release(self) -> None:
        self._kept = None

    def cost(self) -> Cost:
        kept = self._kept is not None
        way = "retained reverse graph" if kept else "recomputed reverse"
        return Cost(
            self.matrix,
            way,
            len(self.indices),
            COST["Hessian"]["retained graph" if kept else "recomputed reverse"],
            self._bytes if kept else 0,
            REVERSE,
            chunk_examples=min(self.risk.examples.batch_size, len(self.indices)),
        )

    def factor(self) -> Factor | str:
        return REVERSE

    def _go_through(self, vectors: Tensor, total: Tensor) -> None:
        """Multiply by every batch, whose graphs are kept while they fit in every process."""
        products, self._bytes, number = list[Product](), 0, batches_of(self.risk, self.indices)
        for done, (risk, batch) in enumerate(in_step(self.risk, self.indices), start=1):
            self._seen = set[int]()
            product = self._differentiable(risk, batch)
            if products is not None and max(world().gather(self._bytes)) * number / done <= self.memory:
                products.append(product)
            else:
                products = None
            total += product(vectors)
            part_done(done / number)
        self._kept = products

    def _differentiable(self, risk: Risk, batch: Batch) -> Product:
        try:
            return PRODUCTS[self.matrix](risk, batch)
        except StagetraceError:
            raise
        except (RuntimeError, NotImplementedError) as cause:
            raise DifferentiationError(
                f"{self.risk.where}: the {self.matrix} needs second derivatives, which an operation of the model or "
                f"loss lacks ({first_line(cause)}); replace that operation, or use curvature=Identity() for this stage"
            ) from cause

    def _count(self, tensor: Tensor) -> None:
        """Add up what a batch's graph keeps beside the pieces, each memory once."""
        for address, size in storages_of(tensor).items():
            if address not in self._seen:
                self._seen.add(address)
                self._bytes += size

    def _check_finite(self, total: Tensor) -> None:
        wrong = (~torch.isfinite(total)).sum().double()
        if float(world().sum(wrong)):
            raise SolveError(
                f"{self.risk.where}: a product with the {self.matrix} is not finite: a loss or one of its derivatives "
                "is not, for one of the examples; look for NaN in the data, or for a norm or a square root at zero"
            )
