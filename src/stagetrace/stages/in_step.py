"""Batches of every process's own examples, in step: each process goes through the model as often as all others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from torch import Tensor, nn

from stagetrace.objectives.objective import Objective
from stagetrace.parallel import world
from stagetrace.stages.data import Batch
from stagetrace.stages.risk import Risk

__all__ = ["batches_of", "in_step"]


def batches_of(risk: Risk, indices: Sequence[int], size: int | None = None) -> int:
    """How many batches `in_step` makes, the same number in every process."""
    return -(-world().largest_shard(len(indices)) // (size or risk.examples.batch_size))


def in_step(risk: Risk, indices: Sequence[int], size: int | None = None) -> Iterator[tuple[Risk, Batch]]:
    """This process's share of the examples in batches of `size`, as many batches as any process has.

    Where it has fewer, it goes through the first example once more with losses times zero; what comes with the batch
    is the risk to take.
    """
    plan = risk.examples.batch_indices(world().shard(indices), size=size)
    most = batches_of(risk, indices, size)
    idle = replace(risk, objective=_Idle(risk.objective))
    for place, batch in enumerate(risk.read([*plan, *[indices[:1]] * (most - len(plan))])):
        yield (risk if place < len(plan) else idle), batch


@final
@dataclass(frozen=True)
class _Idle:
    """An objective whose losses are zero, and so are their derivatives, on the same way through the model."""

    inner: Objective

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return self.inner.outputs(model, batch)

    def losses(self, outputs: Tensor, batch: Any) -> Tensor:
        return self.inner.losses(outputs, batch) * 0.0
