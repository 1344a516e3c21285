"""The mean over examples of a second derivative, as a linear operator: the one data loop of all curvature."""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor

from stagetrace.curvature.chunk import Product
from stagetrace.curvature.cost import Cost
from stagetrace.curvature.factor import gauss_newton_factor
from stagetrace.curvature.operator import Factor, LinearOperator, SumOperator
from stagetrace.curvature.plan import Matrix, Plan, make_plan
from stagetrace.curvature.processes import among_processes
from stagetrace.curvature.shares import Shares
from stagetrace.curvature.symmetry import FirstProducts
from stagetrace.errors import SolveError, StagetraceError, first_line
from stagetrace.parallel import world
from stagetrace.progress import part_done
from stagetrace.stages.cached import BATCH_BYTES, CachedBatches
from stagetrace.stages.gradient import explain_not_finite
from stagetrace.stages.halves import is_out_of_memory, shrink, within
from stagetrace.stages.risk import Risk
from stagetrace.stages.sizes import by_size

_WHAT = "a product with the curvature"


@final
class MeanCurvature(LinearOperator):
    """`(1/n) sum_i d2 loss_i` (or its Gauss-Newton part) over some examples, in a stage's trained parameters.

    Examples are sharded over processes, vectors are not. They are read once and held while they are small; chunks are
    cached between products where the plan says so, and traced once that has paid.

    Args:
        risk: the losses and the point they are differentiated at.
        indices: the examples averaged over.
        plan: how products are computed; see `make_plan`.
    """

    def __init__(self, risk: Risk, indices: Sequence[int], plan: Plan) -> None:
        self.size, self.dtype, self.device = risk.trained.size, risk.trained.dtype, risk.trained.device
        self.risk, self.indices, self.plan = risk, indices, plan
        self._mine = world().shard(indices)
        size = within(risk.examples, _WHAT, plan.chunk_examples)
        self._plan = risk.examples.batch_indices(self._mine, size=size)
        self._kept: list[Product] | None = None
        self._batches = CachedBatches(risk, self._plan, BATCH_BYTES)
        self._multiplied = 0
        self._first = FirstProducts(risk.where, plan.matrix, self.rounding)
        self._cost = plan.gradients_per_product  # the first plan's, which all processes share

    @staticmethod
    def planned(risk: Risk, matrix: Matrix, indices: Sequence[int], memory: int) -> "MeanCurvature":
        """Probe the model, decide how to multiply within `memory` bytes per process, and build the operator."""
        with world().together(f"looking how to multiply the curvature of {risk.where}"):
            ordered, differ = by_size(risk.examples, indices)
            if differ:  # each process's share has short and long ones
                ordered = [index for rank in range(world().size) for index in ordered[rank :: world().size]]
            share = world().largest_shard(len(ordered))  # on every process, so that all make the same plan
            plan = make_plan(risk, matrix, ordered, share, memory, differ=differ)
        return MeanCurvature(risk, ordered, plan)

    @property
    def rounding(self) -> float:
        return max(torch.finfo(self.dtype).eps, self.plan.rounding)

    @property
    def shares(self) -> Shares:
        return among_processes()

    def apply(self, vectors: Tensor) -> Tensor:
        self._multiplied += vectors.shape[1]
        with world().together(f"{_WHAT} of {self.risk.where}", vectors):
            mine = self._sum(vectors)
        total = world().sum(mine) / len(self.indices)
        if not bool(torch.isfinite(total.sum())):
            self._raise_not_finite()
        self._first.see(vectors, total)
        return total

    def _sum(self, vectors: Tensor) -> Tensor:
        """The sum over this process's examples; again with less in memory at once where that runs out."""
        while True:
            try:
                if self.plan.traced_from is not None and self._multiplied >= self.plan.traced_from:
                    self._trace()
                total = torch.zeros_like(vectors)
                for done, product in enumerate(self._products(), start=1):
                    total += product(vectors)
                    part_done(done / len(self._plan))
                return total
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._make_room(error)

    def _make_room(self, error: Exception) -> None:
        """Hold no graphs between products, and halve the chunks."""
        size = max((len(indices) for indices in self._plan), default=1)
        if size > 1 or not self.plan.caches:
            size = shrink(self.risk.examples, _WHAT, size, error)
        self._kept, self.plan = None, self.plan.without_caching()
        self._plan = self.risk.examples.batch_indices(self._mine, size=size)
        self._batches = CachedBatches(self.risk, self._plan, BATCH_BYTES)

    def release(self) -> None:
        self._kept = None

    def share(self, other: LinearOperator) -> None:
        """Take the examples that another mean (with its penalty) has read, where both have them in the same batches."""
        mean = other.left if isinstance(other, SumOperator) else other
        if isinstance(mean, MeanCurvature) and mean.risk is self.risk and mean._plan == self._plan:
            self._batches = mean._batches

    def subsample(self, examples: int, generator: torch.Generator) -> LinearOperator:
        """The same curvature over `examples` of its examples, drawn without replacement and not cached."""
        drawn = sorted(torch.randperm(len(self.indices), generator=generator)[:examples].tolist())
        return MeanCurvature(self.risk, [self.indices[position] for position in drawn], self.plan.without_caching())

    def traced_over(self, examples: int) -> "MeanCurvature":
        """The same over the first few of its examples by traced tangent maps: to see what tracing takes.

        Where tracing fails its graphs are kept, as those of the whole would be.
        """
        few = MeanCurvature(self.risk, self.indices[:examples], self.plan)
        few._trace()
        return few

    def cost(self) -> Cost:
        plan = self.plan
        return Cost(
            plan.matrix,
            plan.way,
            len(self.indices),
            plan.gradients_per_product,
            plan.cached_bytes,
            plan.missing,
            plan.untraced,
            self.rounding if self.rounding > torch.finfo(self.dtype).eps else None,
            min(plan.chunk_examples, len(self._mine)),
            plan.bytes_per_example * min(plan.chunk_examples, len(self._mine)),
            self.risk.evaluation.precision,
            plan.error,
        )

    def factor(self) -> Factor | str:
        if self.plan.matrix != "GaussNewton":
            return "the Hessian is no sum of squares"
        with world().together(f"the rows of the Gauss-Newton matrix of {self.risk.where}"):
            found = gauss_newton_factor(self.risk, self.indices, self._mine, self._cost)
        refused = [each for each in world().gather(found if isinstance(found, str) else None) if each]
        return refused[0] if refused else found  # what one process cannot do, none does

    def _products(self) -> Iterator[Product]:
        if self._kept is None and self.plan.caches:
            self._kept = self._chunks()
        if self._kept is not None:
            yield from self._kept
        else:
            for batch in self._batches:
                yield self.plan.chunk(self.risk, batch)

    def _trace(self) -> None:
        """Put traced tangent maps in the place of retained graphs; if tracing fails on one chunk, all stay graphs."""
        before, self.plan = self.plan, self.plan.traced()
        self._kept = None
        try:
            self._kept = self._chunks()
        except StagetraceError:
            raise
        except (RuntimeError, NotImplementedError) as cause:
            self.plan = before.untraceable(first_line(cause))

    def _chunks(self) -> list[Product]:
        """Every chunk, ready to be multiplied many times."""
        return [self.plan.chunk(self.risk, batch) for batch in self._batches]

    def _raise_not_finite(self) -> None:
        with world().together(f"a look for what is not finite in {self.risk.where}"):
            for batch in self.risk.read(self.risk.examples.batch_indices(self._mine)):
                explain_not_finite(self.risk, batch)
        raise SolveError(
            f"{self.risk.where}: a product with the {self.plan.matrix} is not finite, though losses and gradients are; "
            "the loss has no second derivative somewhere (a norm at zero, a square root): smooth it"
        )
